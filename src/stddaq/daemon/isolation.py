"""Work that may hang, beside an asyncio loop that must not: file systems, other processes.

The thread is a daemon, so that one that hangs for good keeps neither the loop nor the process.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


async def aside(function: Callable[[], T], timeout: float) -> T:
    """Run `function` in a thread of its own; what it returns or raises.

    Raises `TimeoutError` after `timeout` seconds; the thread then goes on, and nobody hears of it.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except Exception as error:  # noqa: BLE001  (it belongs to the caller)
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(future)), timeout)
