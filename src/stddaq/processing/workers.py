"""Threads that work on images while the service's own thread receives and publishes.

Threads pay because everything that takes long (codecs, numpy on large arrays) runs without the GIL.
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
# One that is worked on and one that waits, for each thread: none ever waits for the service's own thread.
TASKS_PER_THREAD = 2


@dataclass(slots=True)
class _Task(Generic[T]):
    jobs: list[T]
    is_done: bool = False


class Workers(Generic[T]):
    """`n_threads` threads that call `work` with each job of the tasks given; 0: `start` itself does it.

    The file descriptor of `fileno` is readable when a task was finished; `acknowledge` makes it quiet again.
    """

    def __init__(self, n_threads: int, work: Callable[[T], None]) -> None:
        self._work = work
        self._limit = max(1, n_threads * TASKS_PER_THREAD)
        self._running: list[_Task[T]] = []
        self._queue: queue.SimpleQueue[_Task[T] | None] = queue.SimpleQueue()
        self._done = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._threads = [
            # Daemons: a function that hangs does not keep the service from ending.
            threading.Thread(target=self._serve, name=f"worker-{i}", daemon=True)
            for i in range(n_threads)
        ]
        for thread in self._threads:
            thread.start()

    def fileno(self) -> int:
        return self._done

    def acknowledge(self) -> None:
        """Take note of finished tasks."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._done)
        self._running = [task for task in self._running if not task.is_done]

    @property
    def n_free(self) -> int:
        """Tasks that can be started now."""
        return self._limit - len(self._running)

    def start(self, jobs: list[T]) -> None:
        """Have these jobs done, in order, by one thread."""
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
        """End the threads after what they have been given. Whether that took less than `timeout` seconds."""
        deadline = time.monotonic() + timeout
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if any(thread.is_alive() for thread in self._threads):
            return False
        os.close(self._done)
        return True
