"""Run the services of a deployment as child processes: readiness, restarts, an orderly end.

The children's lines are merged into one stream, each after the name of its service. Children never outlive
the supervisor: it ends them in order, and if it is killed the kernel sends them SIGTERM. The set of services
may change at any time, but services that take part in a run never change during one.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from stddaq.daemon.output import LineOutput

REFUSED = 2
READY_TIMEOUT_S = 30.0
# Limit for the end of a service after SIGTERM; services promise 2 s.
END_TIMEOUT_S = 4.0
RESTART_DELAYS_S = (0.5, 1.0, 2.0, 4.0, 8.0)
# A service that needs more restarts than there are delays within this time is given up.
RESTART_WINDOW_S = 60.0
PROBE_TIMEOUT_S = 0.5
# A driver without a run ends within this time after SIGUSR1.
RETIRED_SOON_S = 2.5
_PR_SET_PDEATHSIG = 1
_COLOURS = ("36", "32", "33", "35", "34", "96", "92", "93", "95", "94")
_LIBC = ctypes.CDLL(None, use_errno=True)

EndReason = Literal["asked", "refused", "gave up"]


@dataclass(frozen=True, slots=True)
class ServiceSpec:
    """One service to run: its name in the output, its command, and the endpoint that it binds when ready."""

    name: str
    command: tuple[str, ...]
    address: str
    """`ipc://PATH`, or `tcp://HOST:PORT`; empty when it cannot be known."""
    may_finish: bool = False
    """Exit code 0 is a natural end (a replay), not a crash."""
    start_up: str = ""
    """What it reads of the configuration when it starts: with another text it has to be started again."""
    records: bool = False
    """It takes part in runs."""
    conducts: bool = False
    """It decides when runs begin, and ends after the one that goes on when it gets SIGUSR1."""


@dataclass(slots=True)
class _Child:
    spec: ServiceSpec
    process: asyncio.subprocess.Process | None = None
    restarts: list[float] = field(default_factory=list)
    finished: bool = False
    down: bool = False
    """It refuses to start, and is not tried again before something changes."""
    end: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when it is not to be started again."""
    task: asyncio.Task[None] | None = None

    @property
    def awaited(self) -> bool:
        """Return whether it is not ready but may still become so."""
        return not (self.finished or self.down or is_listening(self.spec.address))


class Supervisor:
    """Runs services until it is asked to end, one refuses to start, or one keeps crashing."""

    def __init__(
        self, specs: Sequence[ServiceSpec], restart_delays: Sequence[float] = RESTART_DELAYS_S
    ) -> None:
        """Take `specs` in the order in which they end: sources first, writers last.

        `restart_delays`: seconds before the first, second, ... restart of a service; there are no more.
        """
        self._restart_delays = tuple(restart_delays)
        self._children = [_Child(spec) for spec in specs]
        self._width = max(len(spec.name) for spec in specs)
        self._output = LineOutput(sys.stdout)
        self._colour = self._output.is_terminal
        self._was_ready = False
        self._end = asyncio.Event()
        self._reason: EndReason = "asked"
        self._hurry = False

    async def run(
        self, on_ready: Callable[[], str], follow: Callable[[Supervisor], Awaitable[None]] | None = None
    ) -> int:
        """Run all services. Return the exit code.

        `on_ready` returns the line to print when all are ready. `follow` then runs and calls `change_to`
        when other services shall run.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._ask_to_end, number)
        self._start(self._children)
        following = asyncio.create_task(self._follow(on_ready, follow))
        ended = asyncio.create_task(self._end.wait())
        await asyncio.wait((ended, *((following,) if follow else ())), return_when=asyncio.FIRST_COMPLETED)
        self._end.set()
        following.cancel()
        await self._end_in_order(self._children)
        self.say("all services have ended")
        with contextlib.suppress(asyncio.CancelledError):
            await following
        return {"asked": 0, "refused": REFUSED, "gave up": 1}[self._reason]

    async def _follow(
        self, on_ready: Callable[[], str], follow: Callable[[Supervisor], Awaitable[None]] | None
    ) -> None:
        await self._announce(on_ready)
        self._was_ready = True
        if follow:
            await follow(self)

    async def change_to(self, specs: Sequence[ServiceSpec]) -> None:
        """Run `specs`, given in the order in which they end, instead. Unchanged services run on.

        If a changed service takes part in runs, the current run ends first and the next one starts after the
        change.
        """
        wanted = {spec.name: spec for spec in specs}
        present = {child.spec.name: child for child in self._children}
        leaving = [child for child in self._children if self._has_to_leave(child, wanted)]
        joining = [spec for spec in specs if spec.name not in present or present[spec.name] in leaving]
        if not leaving and not joining:
            return
        if any(spec.records for spec in (*joining, *(child.spec for child in leaving))):
            conductors = [child for child in self._children if child.spec.conducts]
            await asyncio.gather(*(self._retire(child) for child in conductors))
            leaving += [child for child in conductors if child not in leaving]
        ending = [child.spec for child in leaving]
        staying = {child.spec.name for child in self._children if child not in leaving}
        starting = [spec for spec in specs if spec.name not in staying]
        self.say(f"the configuration has changed; ending: {_names(ending)}; starting: {_names(starting)}")
        await self._end_in_order([child for child in self._children if child in leaving])
        self._children = [present[spec.name] if spec.name in staying else _Child(spec) for spec in specs]
        new = [child for child in self._children if child.task is None]
        self._width = max(len(spec.name) for spec in specs)
        self._start(new)
        await self._announce(lambda: "all services ready, with the changed configuration")

    @staticmethod
    def _has_to_leave(child: _Child, wanted: dict[str, ServiceSpec]) -> bool:
        spec = wanted.get(child.spec.name)
        # A finished service (a replay) does not run again.
        return spec is None or (not child.finished and (child.down or child.spec != spec))

    async def _retire(self, child: _Child) -> None:
        """Wait for the end of the current run, if any, and of the driver."""
        assert child.task is not None
        child.end.set()
        self._signal(child, signal.SIGUSR1)
        done, _ = await asyncio.wait((child.task,), timeout=RETIRED_SOON_S)
        if not done:
            self.say("the configuration has changed; waiting for the end of the run")
            await asyncio.wait((child.task,))

    def _start(self, children: Sequence[_Child]) -> None:
        """Start services in the reverse order of their end, so that receivers are ready before senders."""
        for child in reversed(children):
            child.task = asyncio.create_task(self._keep_running(child))

    def _ask_to_end(self, number: int) -> None:
        # Only SIGINT counts twice: SIGTERM arrives more than once if a parent with several threads dies.
        if self._end.is_set() and number == signal.SIGINT and not self._hurry:
            self._hurry = True
            self.say("asked again: the services are killed")
        self._end.set()

    def _end_because(self, reason: EndReason) -> None:
        if not self._end.is_set():
            self._reason = reason
            self._end.set()

    async def _announce(self, on_ready: Callable[[], str]) -> None:
        begin = time.monotonic()
        waiting = list(self._children)
        complained = False
        while waiting:
            waiting = [child for child in waiting if child.awaited]
            if waiting and not complained and time.monotonic() - begin > READY_TIMEOUT_S:
                names = ", ".join(child.spec.name for child in waiting)
                self.say(f"not ready after {READY_TIMEOUT_S:g} s: {names}; still waiting")
                complained = True
            await asyncio.sleep(0.05)
        self.say(on_ready())

    async def _keep_running(self, child: _Child) -> None:
        """Start a service, and restart it after a crash."""
        while True:
            code = await self._run_once(child)
            if self._end.is_set() or child.end.is_set():
                return
            if code == REFUSED and not self._was_ready:
                self.say(f"{child.spec.name} refuses to start; ending")
                self._end_because("refused")
                return
            if code == 0 and child.spec.may_finish:
                self.say(f"{child.spec.name} has finished")
                child.finished = True
                return
            how = (
                f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            )
            delay = self._restart_delay(child)
            if delay is None and code == REFUSED:
                # The other services run without it, and the next configuration may correct it.
                self.say(f"{child.spec.name} refuses to start; it stays down until the configuration changes")
                child.down = True
                return
            if delay is None:
                self.say(
                    f"{child.spec.name} {how}, {len(self._restart_delays) + 1} times within "
                    f"{RESTART_WINDOW_S:g} s; ending"
                )
                self._end_because("gave up")
                return
            self.say(f"{child.spec.name} {how}; starting it again in {delay:g} s")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(child.end.wait(), delay)
            if self._end.is_set() or child.end.is_set():
                return

    def _restart_delay(self, child: _Child) -> float | None:
        """Return the seconds before the next start; None after too many."""
        now = time.monotonic()
        child.restarts = [moment for moment in child.restarts if now - moment < RESTART_WINDOW_S]
        if len(child.restarts) >= len(self._restart_delays):
            return None
        child.restarts.append(now)
        return self._restart_delays[len(child.restarts) - 1]

    async def _run_once(self, child: _Child) -> int:
        child.process = await asyncio.create_subprocess_exec(
            *child.spec.command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            # Ctrl-C reaches only the supervisor, which ends the services in order.
            start_new_session=True,
            preexec_fn=end_with_parent(),
        )
        if child.end.is_set():  # It was asked to end before it had started.
            self._signal(child, signal.SIGTERM)
        assert child.process.stdout is not None
        await self._print_lines(child, child.process.stdout)
        return await child.process.wait()

    async def _print_lines(self, child: _Child, stream: asyncio.StreamReader) -> None:
        name = child.spec.name.ljust(self._width)
        if self._colour:
            colour = _COLOURS[self._children.index(child) % len(_COLOURS)]
            name = f"\x1b[{colour}m{name}\x1b[0m"
        while True:
            try:
                line = await stream.readline()
            except ValueError:  # Longer than the reader's limit: it is printed in parts.
                continue
            if not line:
                return
            self._output.write(f"{name} | {line.decode(errors='replace').rstrip()}", self._dropped)

    async def _end_in_order(self, children: Sequence[_Child]) -> None:
        """Send SIGTERM in the order given, to writers together; kill those that do not end."""
        groups: dict[str, list[_Child]] = {}
        for child in children:
            groups.setdefault(child.spec.name.split()[0], []).append(child)
        for group in groups.values():
            for child in group:
                child.end.set()
            running = [child for child in group if child.process and child.process.returncode is None]
            for child in running:
                self._signal(child, signal.SIGKILL if self._hurry else signal.SIGTERM)
            await asyncio.gather(*(self._wait_or_kill(child) for child in running))
            await asyncio.gather(*(child.task for child in group if child.task))

    async def _wait_or_kill(self, child: _Child) -> None:
        assert child.process is not None
        deadline = time.monotonic() + END_TIMEOUT_S
        waiting = asyncio.ensure_future(child.process.wait())
        while time.monotonic() < deadline and not self._hurry:
            if (await asyncio.wait((waiting,), timeout=0.1))[0]:
                return
        if not self._hurry:
            self.say(f"{child.spec.name} does not end within {END_TIMEOUT_S:g} s of SIGTERM; killing it")
        self._signal(child, signal.SIGKILL)
        await waiting

    @staticmethod
    def _signal(child: _Child, number: int) -> None:
        if child.process is not None:
            with contextlib.suppress(ProcessLookupError):
                child.process.send_signal(number)

    def say(self, message: str) -> None:
        name = "stddaq".ljust(self._width)
        if self._colour:
            name, message = f"\x1b[1m{name}\x1b[0m", f"\x1b[1m{message}\x1b[0m"
        self._output.write(f"{name} | {message}", self._dropped)

    def _dropped(self, n_dropped: int) -> str:
        return (
            f"{'stddaq'.ljust(self._width)} | {n_dropped} lines were dropped because the output was not read"
        )


def _names(specs: Iterable[ServiceSpec]) -> str:
    return ", ".join(spec.name for spec in specs) or "none"


def end_with_parent() -> Callable[[], None]:
    """Let the kernel send the child SIGTERM when this process dies in any way (a `preexec_fn`).

    With SIGTERM, unlike SIGKILL, the child still closes files and removes sockets and segments.
    """
    parent = os.getpid()

    def in_child() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)  # The parent died before the line above.

    return in_child


def is_listening(address: str) -> bool:
    """Return whether a process accepts connections at `ipc://PATH` or `tcp://HOST:PORT`; True if empty."""
    if not address:
        return True
    scheme, _, place = address.partition("://")
    try:
        if scheme == "ipc":
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                probe.settimeout(PROBE_TIMEOUT_S)
                probe.connect(place)
        else:
            host, _, port = place.rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), PROBE_TIMEOUT_S).close()
    except OSError:
        return False
    return True
