"""A timeout that does not count what arrived in time as missing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

STEPS = 5


@asynccontextmanager
async def patient_timeout(seconds: float) -> AsyncIterator[None]:
    """Raise `TimeoutError` after `seconds`, of which a time without a running event loop is a fifth at most.

    The loop may be held up by a slow callback of a plan, or with a suspended computer. It then still has time
    to find what has arrived meanwhile.
    """
    loop = asyncio.get_running_loop()
    # Not wait_for: before Python 3.12 it can swallow a cancellation.
    async with asyncio.timeout(None) as limit:

        def step(n_left: int) -> None:
            nonlocal timer
            if n_left:
                timer = loop.call_later(seconds / STEPS, step, n_left - 1)
            else:
                limit.reschedule(loop.time())

        timer = loop.call_later(seconds / STEPS, step, STEPS - 1)
        try:
            yield
        finally:
            timer.cancel()
