"""A thread for what blocks, like files and cameras, so that no event loop has to wait for it."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

# An idle thread ends after this; the next step starts another.
IDLE_TIMEOUT_S = 5.0


class Worker:
    """Runs functions in order. An executor would keep a program from exiting while one of them blocks."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._changed = threading.Condition()
        self._steps: deque[Callable[[], None]] = deque()
        self._runs = False

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what `function` returns, after all functions that were passed before.

        It is completed, or not run at all, when the caller is cancelled.
        """
        future: Future[T] = Future()

        def step() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = function(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001  (the caller raises it)
                future.set_exception(error)
            else:
                future.set_result(result)

        self.submit(step)
        return await asyncio.wrap_future(future)

    def submit(self, step: Callable[[], None]) -> None:
        """Run `step`, which does not raise, after all functions that were passed before. Return at once."""
        with self._changed:
            self._steps.append(step)
            if not self._runs:
                self._runs = True
                threading.Thread(target=self._work, name=self._name, daemon=True).start()
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                if not self._changed.wait_for(lambda: self._steps, IDLE_TIMEOUT_S):
                    self._runs = False
                    return
                step = self._steps.popleft()
            step()
            # An idle thread keeps nothing alive.
            del step


async def uninterrupted(step: Coroutine[Any, Any, T]) -> T:
    """Complete `step` also when the caller is cancelled meanwhile."""
    task = asyncio.ensure_future(step)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
