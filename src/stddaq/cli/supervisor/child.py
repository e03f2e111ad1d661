"""One service as a child process: its start, its lines, its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Protocol

from stddaq.cli.supervisor.readiness import is_listening
from stddaq.cli.supervisor.restarts import Restarts
from stddaq.cli.supervisor.spec import ServiceSpec
from stddaq.daemon.parent_death import end_with_parent
from stddaq.daemon.service_manager import without_notifications

# Limit for the end of a service after SIGTERM; services promise 2 s.
END_TIMEOUT_S = 4.0
# A driver without a run ends within this time after SIGUSR1.
RETIRED_SOON_S = 2.5


class Process(Protocol):
    """A running process; a part of `asyncio.subprocess.Process`."""

    @property
    def returncode(self) -> int | None: ...
    @property
    def stdout(self) -> asyncio.StreamReader | None: ...
    def send_signal(self, signal: int) -> None: ...
    async def wait(self) -> int: ...


StartProcess = Callable[[Sequence[str]], Awaitable[Process]]


async def start_process(command: Sequence[str]) -> Process:
    """Start a process whose standard output and error are one pipe."""
    return await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        # Ctrl-C reaches only the supervisor, which ends the services in order.
        start_new_session=True,
        # If systemd runs the supervisor, it watches only that.
        env=without_notifications(os.environ),
        preexec_fn=end_with_parent(),
    )


class Child:
    """A service that the supervisor keeps running.

    Attributes:
        is_finished: its work is done.
        is_down: it refuses to start, and is not tried again before something changes.
    """

    def __init__(self, spec: ServiceSpec, restarts: Restarts, start: StartProcess = start_process) -> None:
        self.spec, self.restarts = spec, restarts
        self.is_finished = self.is_down = False
        self._start_process = start
        self._process: Process | None = None
        self._task: asyncio.Task[None] | None = None
        self._end = asyncio.Event()
        self._end_signal = signal.SIGTERM

    @property
    def has_started(self) -> bool:
        """Whether `keep` was called."""
        return self._task is not None

    @property
    def is_ending(self) -> bool:
        """Whether it must not be started again."""
        return self._end.is_set()

    @property
    def is_awaited(self) -> bool:
        """Whether it is not ready but may still become so."""
        return not (self.is_finished or self.is_down or is_listening(self.spec.address))

    def keep(self, running: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Let a task run the service until its last exit. Return the task."""
        self._task = asyncio.create_task(running, name=self.spec.name)
        return self._task

    async def run_once(self, write: Callable[[str], None]) -> int:
        """Start the process, call `write` with each of its lines, and return its exit code."""
        self._process = process = await self._start_process(self.spec.command)
        if self.is_ending:  # It was asked to end before it had started.
            self._signal(self._end_signal)
        assert process.stdout is not None
        while True:
            try:
                line = await process.stdout.readline()
            except ValueError:  # Longer than the reader's limit: it is printed in parts.
                continue
            if not line:
                return await process.wait()
            write(line.decode(errors="replace").rstrip())

    async def wait_before_restart(self, delay: float) -> None:
        """Wait for `delay` seconds, or until the service has to end."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay):
                await self._end.wait()

    async def retire(self, report_wait: Callable[[], None]) -> None:
        """Let it exit after the run in progress, which may take any time; `report_wait` if it takes long."""
        assert self._task is not None
        self._ask_to_end(signal.SIGUSR1)
        await asyncio.wait((self._task,), timeout=RETIRED_SOON_S)
        if not self._task.done():
            report_wait()
        await self._last_exit(self._task)

    async def end(self, hurry: asyncio.Event, say: Callable[[str], None]) -> None:
        """Send SIGTERM; after a timeout, or when `hurry` is set, SIGKILL. Wait for the exit."""
        if self._task is None:
            return
        self._ask_to_end(signal.SIGKILL if hurry.is_set() else signal.SIGTERM)
        hurrying = asyncio.create_task(hurry.wait())
        await asyncio.wait((self._task, hurrying), timeout=END_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
        hurrying.cancel()
        if not self._task.done():
            if not hurry.is_set():
                say(f"{self.spec.name} does not end within {END_TIMEOUT_S:g} s of SIGTERM; killing it")
            self._ask_to_end(signal.SIGKILL)
        await self._last_exit(self._task)

    @staticmethod
    async def _last_exit(task: asyncio.Task[None]) -> None:
        # Not `await task`: the cancellation of a change must not cancel the task that watches the process.
        await asyncio.wait((task,))
        task.result()

    def _ask_to_end(self, number: signal.Signals) -> None:
        self._end_signal = number
        self._end.set()
        self._signal(number)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)
