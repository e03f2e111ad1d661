"""Closing what is open: at the end of a block, and when a signal ends the program."""

from __future__ import annotations

import signal
import sys
from types import TracebackType
from typing import Self


class Closing:
    """Calls `close` at the end of the block."""

    def close(self) -> None:
        """Release what the object holds."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def exit_at_signals() -> None:
    """Let SIGTERM and SIGHUP raise `SystemExit` in the main thread, so that what is open is closed."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
