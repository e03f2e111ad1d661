"""The progress of a long command, in one line of a terminal."""

from __future__ import annotations

import sys
import time

_PERIOD_S = 0.2


class Progress:
    """A line on standard error that is written over; nothing is shown if that is no terminal.

    It has no thread, because commands fork. A context manager, at whose end the line is erased.
    """

    def __init__(self) -> None:
        self._what, self._since, self._shown_at = "", 0.0, 0.0
        self._before = 0

    def __enter__(self) -> Progress:
        return self

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show that `what`, such as "reading", has finished `done` of `total` images."""
        now = time.monotonic()
        if what != self._what:
            self._what, self._since, self._before = what, now, done
        if sys.stderr is None or not sys.stderr.isatty() or now - self._shown_at < _PERIOD_S:
            return
        self._shown_at = now
        n_since = done - self._before
        left = (now - self._since) * (total - done) / n_since if n_since else 0.0
        share = 100 * done // total if total else 100
        self._write(f"{self._what}: {share} % of {total} images, {left:.0f} s left")

    def __exit__(self, *_: object) -> None:
        if self._shown_at:
            self._write("")

    def _write(self, text: str) -> None:
        # Carriage return, and erase the line; `sys.stderr` would escape both.
        stream = getattr(sys.stderr, "terminal", sys.stderr)
        stream.write(f"\r\x1b[K{text}")
        stream.flush()
