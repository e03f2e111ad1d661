"""The timeout of clients whose event loop may be held up."""

from __future__ import annotations

import asyncio
import time

import pytest

from stddaq.client.waiting import patient_timeout


def test_it_ends_what_does_not_happen():
    async def wait() -> None:
        async with patient_timeout(0.05):
            await asyncio.sleep(60)

    with pytest.raises(TimeoutError):
        asyncio.run(wait())


def test_a_loop_that_was_held_up_has_time_to_find_what_has_happened():
    async def wait() -> str:
        async with patient_timeout(0.5):
            time.sleep(1)
            for _ in range(5):
                await asyncio.sleep(0)
            return "found"

    assert asyncio.run(wait()) == "found"


def test_afterwards_it_ends_nothing():
    async def wait() -> None:
        async with patient_timeout(0.05):
            pass
        await asyncio.sleep(0.1)

    asyncio.run(wait())


def test_a_cancellation_stays_one():
    async def wait() -> None:
        async with patient_timeout(60):
            await asyncio.sleep(60)

    async def cancel() -> None:
        task = asyncio.create_task(wait())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
