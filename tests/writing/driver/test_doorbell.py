"""Rings from another thread call the function in the loop."""

from __future__ import annotations

import asyncio
import threading

from stddaq.writing.driver.doorbell import Doorbell


def test_rings_of_another_thread_call_the_function_in_the_loop():
    async def test() -> list[int]:
        threads: list[int] = []
        answered = asyncio.Event()

        def answer() -> None:
            threads.append(threading.get_ident())
            answered.set()

        doorbell = Doorbell(answer)
        for _ in range(2):
            ringing = [threading.Thread(target=doorbell.ring) for _ in range(3)]
            for thread in ringing:
                thread.start()
            for thread in ringing:
                thread.join()
            async with asyncio.timeout(10):
                await answered.wait()
            answered.clear()
        await asyncio.sleep(0)
        return threads

    assert asyncio.run(test()) == [threading.get_ident()] * 2


def test_a_ring_after_the_end_of_the_loop_does_nothing():
    doorbells: list[Doorbell] = []

    async def test() -> None:
        doorbells.append(Doorbell(lambda: 1 / 0))

    asyncio.run(test())
    doorbells[0].ring()
