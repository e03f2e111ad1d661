"""A timeout that does not count what arrived in time as missing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

STEPS = 5


async def within(timeout: float, wait: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Return what `wait()` returns within `timeout` seconds. Raise `TimeoutError`.

    `wait` may be cancelled and called again: it is called in steps. If the event loop was held up, by a slow
    callback of a plan or with a suspended computer, that counts as one step, and the next one finds what has
    arrived meanwhile.
    """
    # Not wait_for: before Python 3.12 it can swallow a cancellation.
    for _ in range(STEPS):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout / STEPS):
                return await wait()
    raise TimeoutError
