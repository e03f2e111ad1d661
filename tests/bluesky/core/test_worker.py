"""The thread for what blocks, and the loop for callers without one."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import weakref
from concurrent.futures import CancelledError

import pytest
from support.processes.deployment import wait_until

from stddaq_ophyd.core.loop_thread import LoopThread
from stddaq_ophyd.core.worker import Worker, uninterrupted

TIMEOUT_S = 10.0


def test_functions_run_in_order_in_one_thread_and_their_errors_are_raised():
    worker = Worker("test")

    async def main() -> None:
        threads = await asyncio.gather(*(worker.run(threading.current_thread) for _ in range(5)))
        assert {thread.name for thread in threads} == {"test"}
        done: list[int] = []
        await asyncio.gather(*(worker.run(done.append, i) for i in range(100)))
        assert done == list(range(100))
        with pytest.raises(ZeroDivisionError):
            await worker.run(divmod, 1, 0)

    asyncio.run(main())


def test_an_idle_thread_keeps_nothing_alive():
    class Argument:
        pass

    worker, argument = Worker("test"), Argument()
    kept = weakref.ref(argument)
    asyncio.run(worker.run(id, argument))
    del argument
    wait_until(lambda: kept() is None, timeout=TIMEOUT_S, what="the argument to be freed")


def test_a_function_of_a_caller_that_was_cancelled_is_not_run():
    worker, go, done = Worker("test"), threading.Event(), list[int]()

    async def main() -> None:
        blocked = asyncio.create_task(worker.run(go.wait, TIMEOUT_S))
        waiting = asyncio.create_task(worker.run(done.append, 1))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        go.set()
        await blocked
        await worker.run(done.append, 2)

    asyncio.run(main())
    assert done == [2]


def test_a_step_that_must_not_be_interrupted_is_completed():
    async def main() -> None:
        go, done = asyncio.Event(), list[int]()

        async def step() -> None:
            await go.wait()
            done.append(1)

        caller = asyncio.create_task(uninterrupted(step()))
        await asyncio.sleep(0)
        caller.cancel()
        await asyncio.sleep(0)
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await caller
        assert done == [1]

    asyncio.run(main())


def test_a_loop_ends_when_it_is_collected_as_garbage():
    loop = LoopThread("loop of a test")
    assert loop.submit(asyncio.sleep(0, 7)).result(TIMEOUT_S) == 7
    started, cancelled = threading.Event(), threading.Event()

    async def wait() -> None:
        started.set()
        try:
            await asyncio.sleep(1000)
        finally:
            cancelled.set()

    loop.submit(wait())
    assert started.wait(TIMEOUT_S)
    del loop
    gc.collect()
    assert cancelled.wait(TIMEOUT_S)
    wait_until(
        lambda: all(thread.name != "loop of a test" for thread in threading.enumerate()),
        what="the end of the thread",
    )


def test_what_runs_when_a_loop_is_closed_ends_also_if_that_takes_several_turns():
    loop = LoopThread("loop of a test")
    started = threading.Event()

    async def wait() -> None:
        started.set()
        try:
            await asyncio.sleep(1000)
        finally:
            # As for a closing handshake.
            for _ in range(10):
                await asyncio.sleep(0)

    waiting = loop.submit(wait())
    assert started.wait(TIMEOUT_S)
    loop.close()
    with pytest.raises(CancelledError):
        waiting.result(TIMEOUT_S)


FORKED = """
import asyncio, os, warnings
from stddaq_ophyd.core.loop_thread import LoopThread
warnings.simplefilter("ignore")
loop = LoopThread("test")
loop.submit(asyncio.sleep(0)).result(10)
if (pid := os.fork()) == 0:
    os._exit(loop.submit(asyncio.sleep(0, 7)).result(10))
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def test_a_forked_process_has_a_loop_of_its_own():
    ended = subprocess.run(
        [sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=50, check=True
    )
    assert ended.stdout == "7\n"
