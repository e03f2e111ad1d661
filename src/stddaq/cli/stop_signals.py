"""Signals that ask a command to stop where it can."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator, Sequence


class StopAsked:
    """Whether a signal has asked to stop."""

    def __init__(self) -> None:
        self._asked = False

    def __bool__(self) -> bool:
        return self._asked

    def handle(self, number: int, _frame: object = None) -> None:
        """Ask to stop, as a signal handler. Raise `KeyboardInterrupt` at the second Ctrl-C."""
        # Only SIGINT counts twice: a terminal that is closed sends SIGHUP more than once.
        if self._asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = True


@contextlib.contextmanager
def stop_signals(numbers: Sequence[signal.Signals]) -> Iterator[StopAsked]:
    """Let these signals ask to stop instead of ending this process."""
    asked = StopAsked()
    # `nohup` keeps SIGHUP ignored.
    handled = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
    handlers = {number: signal.signal(number, asked.handle) for number in handled}
    try:
        yield asked
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
