"""A thread that does the steps of one device, one after the other, so that nobody else has to wait."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

# The thread ends when it had nothing to do for so long; the next step starts another.
LINGER_S = 5.0


class Worker:
    """Runs functions in order. They must not raise."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._news = threading.Condition()
        self._steps: deque[Callable[[], None]] = deque()
        self._runs = False
        self._is_busy = False

    def submit(self, step: Callable[[], None]) -> None:
        """Run `step` after all that were submitted before."""
        with self._news:
            self._steps.append(step)
            if not self._runs:
                self._runs = True
                threading.Thread(target=self._work, name=self._name, daemon=True).start()
            self._news.notify_all()

    def wait_until_idle(self, timeout: float) -> bool:
        """Whether all steps were done within `timeout` seconds."""
        with self._news:
            return self._news.wait_for(lambda: not self._steps and not self._is_busy, timeout)

    def _work(self) -> None:
        while True:
            with self._news:
                self._is_busy = False
                self._news.notify_all()
                if not self._news.wait_for(lambda: self._steps, LINGER_S):
                    self._runs = False
                    return
                step = self._steps.popleft()
                self._is_busy = True
            step()
