"""An event loop in a thread of its own, for callers without one."""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from stddaq.client.event_loop import run_until_stopped

T = TypeVar("T")


class LoopThread:
    """Runs coroutines in one event loop, which ends with `close`, or when this object is garbage.

    The thread starts with the first coroutine, again after `close`, and in a forked process, which has none.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        # A handler of signals may submit a coroutine while its thread does.
        self._guard = threading.RLock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = 0

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Start `coroutine` after those that were submitted before."""
        # A loop that `close` of another thread has stopped would never run the coroutine.
        with self._guard:
            return asyncio.run_coroutine_threadsafe(coroutine, self._running())

    def close(self) -> None:
        """Cancel what still runs, and end the thread. Return at once."""
        with self._guard:
            loop, self._loop = self._loop, None
        if loop is not None:
            _end(loop)

    def _running(self) -> asyncio.AbstractEventLoop:
        if self._loop is None or self._pid != os.getpid():
            self._loop, self._pid = asyncio.new_event_loop(), os.getpid()
            threading.Thread(
                target=run_until_stopped, args=(self._loop,), name=self._name, daemon=True
            ).start()
            weakref.finalize(self, _end, self._loop).atexit = False
        return self._loop


def _end(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.call_soon_threadsafe(loop.stop)
    except RuntimeError:  # It was closed.
        return
