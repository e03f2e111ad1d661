"""Run the services of a deployment as child processes: readiness, restarts, an orderly end.

Children never outlive the supervisor: it ends them in order, and if it is killed the kernel sends them
SIGTERM. The set of services may change at any time, but services that take part in a run never change during
one.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from itertools import groupby
from typing import Any, Literal

from stddaq.cli.supervisor.change import plan_change
from stddaq.cli.supervisor.child import Child, StartProcess, start_process
from stddaq.cli.supervisor.events import EventPublisher
from stddaq.cli.supervisor.output import ServiceOutput
from stddaq.cli.supervisor.page import SupervisorPage
from stddaq.cli.supervisor.restarts import REFUSED, RESTART_DELAYS_S, Restarts
from stddaq.cli.supervisor.spec import ServiceSpec
from stddaq.daemon.output import LineOutput
from stddaq.daemon.service_manager import service_manager
from stddaq.text import os_error_text
from stddaq.wire.events import Level

READY_TIMEOUT_S = 30.0
READY_PERIOD_S = 0.05

EndReason = Literal["asked", "refuse", "give up"]
_EXIT_CODES: dict[EndReason, int] = {"asked": 0, "refuse": REFUSED, "give up": 1}


class Supervisor:
    """Runs services until it is asked to end, one refuses to start, or one keeps crashing."""

    def __init__(
        self,
        specs: Sequence[ServiceSpec],
        restart_delays: Sequence[float] = RESTART_DELAYS_S,
        start: StartProcess = start_process,
        page: SupervisorPage | None = None,
        events: EventPublisher | None = None,
        *,
        is_plain: bool = False,
    ) -> None:
        """Take `specs` in the order in which they end: sources first, writers last.

        `restart_delays`: seconds before the first, second, ... restart of a service; there are no more.
        `page` shows the services to other processes, `events` their lines. `is_plain`: see `ServiceOutput`.
        """
        self._restart_delays, self._start_process = tuple(restart_delays), start
        self._page, self._events = page, events
        self._output = ServiceOutput(LineOutput(sys.stdout), is_plain=is_plain)
        self._children: list[Child] = []
        self._set_children([self._child(spec) for spec in specs])
        self._was_ready = False
        self._reason: EndReason = "asked"
        self._end, self._hurry = asyncio.Event(), asyncio.Event()

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
        self._start_children()
        showing_alive = self._start_task(service_manager.show_alive())
        following = self._start_task(self._follow(on_ready, follow))
        publishing = self._start_task(self._publish())
        sending = self._start_task(self._send_events())
        if follow:
            following.add_done_callback(lambda _: self._end.set())
        await self._end.wait()
        following.cancel()
        service_manager.stopping()
        publishing.cancel()
        if self._page:
            self._page.close()
        await self._end_in_order(self._children)
        self.say("all services have ended")
        sending.cancel()
        if self._events:
            self._events.close()
            self._events = None
        showing_alive.cancel()
        for task in (following, publishing, sending, showing_alive):
            with contextlib.suppress(asyncio.CancelledError):
                await task
        return _EXIT_CODES[self._reason]

    def _start_task(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine)
        task.add_done_callback(self._end_if_failed)
        return task

    def _end_if_failed(self, task: asyncio.Task[None]) -> None:
        """End all services after a defect; then `run` raises it. They would run on without what it did."""
        if not task.cancelled() and task.exception() is not None:
            self._end.set()

    async def change_to(self, specs: Sequence[ServiceSpec]) -> None:
        """Run `specs`, given in the order in which they end, instead. Unchanged services run on.

        If a changed service takes part in runs, the current run ends first and the next one starts after the
        change.
        """
        change = plan_change(
            [child.spec for child in self._children],
            specs,
            finished={child.spec.name for child in self._children if child.is_finished},
            down={child.spec.name for child in self._children if child.is_down},
        )
        if not change:
            return
        by_name = {child.spec.name: child for child in self._children}
        await asyncio.gather(
            *(by_name[spec.name].retire(self._report_wait_for_run) for spec in change.retiring)
        )
        self.say(
            f"the configuration has changed; ending: {_names(change.ending)}; "
            f"starting: {_names(change.starting)}"
        )
        await self._end_in_order([by_name[spec.name] for spec in change.ending])
        self._set_children(
            [self._child(spec) if spec in change.starting else by_name[spec.name] for spec in specs]
        )
        self._start_children()
        await self._announce(lambda: "all services ready, with the changed configuration")

    def say(self, message: str, level: Level = "info") -> None:
        """Write a line of the supervisor itself. The page filters by `level`."""
        self._output.say(message)
        if self._events:
            self._events.publish(message, "up", level=level)

    def _warn(self, message: str) -> None:
        self.say(message, "warning")

    def _write(self, spec: ServiceSpec, line: str) -> None:
        self._output.write(spec.name, line)
        if self._events:
            self._events.publish(line, spec.program or spec.name, spec.instance_id or "")

    def _child(self, spec: ServiceSpec) -> Child:
        return Child(spec, Restarts(self._restart_delays, may_finish=spec.may_finish), self._start_process)

    def _set_children(self, children: list[Child]) -> None:
        self._children = children
        self._output.set_names([child.spec.name for child in children])
        if self._page:
            self._page.show(children)

    def _start_children(self) -> None:
        """Start services in the reverse order of their end, so that receivers are ready before senders."""
        for child in reversed(self._children):
            if not child.has_started:
                child.keep(self._keep_running(child)).add_done_callback(self._end_if_failed)

    def _report_wait_for_run(self) -> None:
        self.say("the configuration has changed; waiting for the end of the run")

    def _ask_to_end(self, number: int) -> None:
        # Only SIGINT counts twice: SIGTERM arrives more than once if a parent with several threads dies.
        if self._end.is_set() and number == signal.SIGINT and not self._hurry.is_set():
            self._hurry.set()
            self._warn("asked again: the services are killed")
        self._end.set()

    async def _follow(
        self, on_ready: Callable[[], str], follow: Callable[[Supervisor], Awaitable[None]] | None
    ) -> None:
        await self._announce(on_ready)
        service_manager.ready("all services ready")
        self._was_ready = True
        if follow:
            await follow(self)

    async def _publish(self) -> None:
        if self._page:
            await self._page.publish()

    async def _send_events(self) -> None:
        if self._events:
            await self._events.serve()

    async def _announce(self, on_ready: Callable[[], str]) -> None:
        """Wait until all services are ready, and say so."""
        begin = time.monotonic()
        waiting = list(self._children)
        complained = False
        while waiting := [child for child in waiting if child.is_awaited]:
            if not complained and time.monotonic() - begin > READY_TIMEOUT_S:
                names = _names(child.spec for child in waiting)
                self._warn(f"not ready after {READY_TIMEOUT_S:g} s: {names}; still waiting")
                complained = True
            await asyncio.sleep(READY_PERIOD_S)
        self.say(on_ready())

    async def _keep_running(self, child: Child) -> None:
        """Start a service, and restart it after a crash."""
        name = child.spec.name
        while True:
            try:
                code = await child.run_once(lambda line: self._write(child.spec, line))
            except OSError as error:  # No memory, or too many processes; it may pass.
                self.say(f"{name} cannot be started: {os_error_text(error)}", "error")
                code = 1
            if self._end.is_set() or child.is_ending:
                return
            decision = child.restarts.decide(code, self._was_ready)
            self.say(f"{name} {decision.message}", "info" if decision.action == "finish" else "error")
            match decision.action:
                case "restart":
                    await child.wait_before_restart(decision.delay)
                    if self._end.is_set() or child.is_ending:
                        return
                case "finish":
                    child.is_finished = True
                    return
                case "stay down":
                    child.is_down = True
                    return
                case "refuse" | "give up" as reason:
                    self._reason = reason
                    self._end.set()
                    return

    async def _end_in_order(self, children: Sequence[Child]) -> None:
        """End services in the order given, those of one group together."""
        for _, group in groupby(children, key=lambda child: child.spec.group):
            await asyncio.gather(*(child.end(self._hurry, self._warn) for child in group))


def _names(specs: Iterable[ServiceSpec]) -> str:
    return ", ".join(spec.name for spec in specs) or "none"
