"""When a writer flushes: often enough for live readers, seldom enough for its throughput.

A flush costs 0.2 to 0.5 ms. In a steady stream images become visible every `FLUSH_PERIOD_S`; when the stream
pauses, as between the points of a scan, they become visible at once. So does the first image after a long
pause, which is the whole point of many scans.
"""

from __future__ import annotations

import time
from collections.abc import Callable

# Longest time from recording an image to the flush that makes it visible.
FLUSH_PERIOD_S = 0.2
# A stream without images for this long has paused.
QUIET_S = 0.002
# Shortest time between two flushes, also when the stream pauses again and again.
FLUSH_SPACING_S = 0.005
# After a pause of this length an image has a flush of its own anyway, so that it may come at once.
LONG_PAUSE_S = FLUSH_SPACING_S


class FlushSchedule:
    """Says when the next flush is due, from the times of recording and flushing.

    Attributes:
        batching_pause: seconds that the loop pauses between two reads. Not a pause of the stream.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.batching_pause = 0.0
        self._pending_since: float | None = None
        self._recorded_at = self._flushed_at = 0.0
        self._is_first = False

    def recorded(self) -> None:
        """Note that images were recorded just now."""
        now = self._clock()
        self._is_first = now - self._recorded_at > LONG_PAUSE_S
        self._recorded_at = now
        if self._pending_since is None:
            self._pending_since = now

    def flushed(self, images_remain: bool) -> None:
        """Note a flush that was done just now, and whether recorded images are still invisible."""
        now = self._clock()
        if not self._is_first:
            # The other images of a burst need not keep the distance to its first one.
            self._flushed_at = now
        self._is_first = False
        self._pending_since = now if images_remain else None

    def cancel(self) -> None:
        """Forget images that wait for a flush: their file is closed."""
        self._pending_since = None

    @property
    def due_in(self) -> float | None:
        """Seconds until the next flush, 0 when it is due, None when every image is visible."""
        if self._pending_since is None:
            return None
        if self._is_first:
            return 0.0
        quiet = QUIET_S + (self.batching_pause if self.batching_pause > QUIET_S / 2 else 0.0)
        after_pause = max(self._recorded_at + quiet, self._flushed_at + FLUSH_SPACING_S)
        due_at = min(self._pending_since + FLUSH_PERIOD_S, after_pause)
        return max(0.0, due_at - self._clock())
