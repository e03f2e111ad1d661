"""Threads that work on images while the main thread of the service receives and publishes.

They run in parallel because codecs, and numpy on large arrays, release the GIL.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
# Each thread has a task and a further one that waits, so that it never waits for the main thread.
TASKS_PER_THREAD = 2


@dataclass(slots=True)
class _Task(Generic[T]):
    jobs: list[T]
    is_done: bool = False


class Workers(Generic[T]):
    """`n_threads` threads that call `work` with each job. With 0 threads, `start` calls it itself.

    `fileno` becomes readable when a task is finished, until `acknowledge`.
    """

    def __init__(self, n_threads: int, work: Callable[[T], object]) -> None:
        self._work = work
        self._limit = max(1, n_threads * TASKS_PER_THREAD)
        self._running: list[_Task[T]] = []
        self._queue: queue.SimpleQueue[_Task[T] | None] = queue.SimpleQueue()
        self._done = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._threads = [
            # Daemon threads: a function that hangs must not keep the service from exiting.
            threading.Thread(target=self._serve, name=f"worker-{i}", daemon=True)
            for i in range(n_threads)
        ]
        for thread in self._threads:
            thread.start()

    def fileno(self) -> int:
        return self._done

    def acknowledge(self) -> None:
        """Clear the signal of finished tasks."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._done)
        self._running = [task for task in self._running if not task.is_done]

    @property
    def n_free(self) -> int:
        """Number of tasks that can be started now."""
        return self._limit - len(self._running)

    def start(self, jobs: list[T]) -> None:
        """Hand these jobs to one thread, which does them in order."""
        task = _Task(jobs)
        if not self._threads:
            self._do(task)
            return
        self._running.append(task)
        self._queue.put(task)

    def _serve(self) -> None:
        while (task := self._queue.get()) is not None:
            self._do(task)
            os.eventfd_write(self._done, 1)

    def _do(self, task: _Task[T]) -> None:
        for job in task.jobs:
            self._work(job)
        task.is_done = True

    def close(self, timeout: float) -> bool:
        """End the threads after their last tasks. Return whether they ended within `timeout` seconds."""
        deadline = time.monotonic() + timeout
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if any(thread.is_alive() for thread in self._threads):
            return False
        os.close(self._done)
        return True
