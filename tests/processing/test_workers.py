"""Worker threads do jobs in order, in parallel tasks, and never keep a service from exiting."""

from __future__ import annotations

import select
import threading

import pytest

from stddaq.processing.workers import TASKS_PER_THREAD, Workers


def wait(workers: Workers[int]) -> None:
    """Wait until a task is finished, as a service's poller does."""
    readable, _, _ = select.select([workers.fileno()], [], [], 60)
    assert readable, "no task was finished"
    workers.acknowledge()


def test_without_threads_start_does_the_jobs_itself() -> None:
    done: list[int] = []
    workers = Workers[int](0, done.append)
    workers.start([1, 2, 3])
    assert done == [1, 2, 3]
    assert workers.n_free == 1
    assert workers.close(1)


@pytest.mark.parametrize("n_threads", [1, 3])
def test_jobs_of_a_task_are_done_in_order_by_one_thread(n_threads: int) -> None:
    done: list[tuple[int, str]] = []
    workers = Workers[int](n_threads, lambda job: done.append((job, threading.current_thread().name)))
    workers.start(list(range(100)))
    assert workers.close(60)
    assert [job for job, _ in done] == list(range(100))
    assert len({name for _, name in done}) == 1


def test_descriptor_is_readable_when_a_task_is_finished_until_it_is_acknowledged() -> None:
    may_go_on = threading.Event()
    workers = Workers[int](1, lambda _: may_go_on.wait(60))
    workers.start([1])
    assert select.select([workers.fileno()], [], [], 0)[0] == []
    may_go_on.set()
    wait(workers)
    assert select.select([workers.fileno()], [], [], 0)[0] == []
    assert workers.close(60)


def test_enough_tasks_can_be_started_to_keep_the_threads_busy() -> None:
    may_go_on = threading.Semaphore(0)
    workers = Workers[int](2, lambda _: may_go_on.acquire())
    for n_free in range(2 * TASKS_PER_THREAD, 0, -1):
        assert workers.n_free == n_free
        workers.start([0])
    assert workers.n_free == 0
    may_go_on.release()
    wait(workers)
    assert workers.n_free == 1
    may_go_on.release(2 * TASKS_PER_THREAD)
    assert workers.close(60)


def test_close_waits_for_started_tasks_but_not_for_one_that_hangs() -> None:
    done: list[int] = []
    workers = Workers[int](1, done.append)
    for job in range(TASKS_PER_THREAD):
        workers.start([job])
    assert workers.close(60)
    assert done == list(range(TASKS_PER_THREAD))

    may_go_on = threading.Event()
    hanging = Workers[int](1, lambda _: may_go_on.wait(60))
    hanging.start([1])
    assert not hanging.close(0)
    may_go_on.set()
