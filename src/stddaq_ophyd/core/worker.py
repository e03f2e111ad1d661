"""A thread that runs the steps of one device in order, so that no caller has to wait for them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

# An idle thread ends after this; the next step starts another.
IDLE_TIMEOUT_S = 5.0


class Worker:
    """Runs functions in order. They must not raise."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._changed = threading.Condition()
        self._steps: deque[Callable[[], None]] = deque()
        self._runs = False
        self._is_busy = False

    def submit(self, step: Callable[[], None]) -> None:
        """Run `step` after all steps that were submitted before."""
        with self._changed:
            self._steps.append(step)
            if not self._runs:
                self._runs = True
                threading.Thread(target=self._work, name=self._name, daemon=True).start()
            self._changed.notify_all()

    def wait_until_idle(self, timeout: float) -> bool:
        """Return whether all steps were done within `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._steps and not self._is_busy, timeout)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._is_busy = False
                self._changed.notify_all()
                if not self._changed.wait_for(lambda: self._steps, IDLE_TIMEOUT_S):
                    self._runs = False
                    return
                step = self._steps.popleft()
                self._is_busy = True
            step()
