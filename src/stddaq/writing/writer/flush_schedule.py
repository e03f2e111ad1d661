"""When a writer flushes, and reports: often enough for live readers, seldom enough for its throughput.

A flush costs 0.1 ms, after a pause several times that, on slow storage much more. When the stream pauses, as
between the points of a scan, images become visible at once. So do the first images after a long pause: the
whole point of many scans, or all that the driver has batched of a fast stream. Flushes of a fast stream take
`FLUSH_SHARE` of the time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from stddaq.daemon.batching import LONGEST_OF_READER_S, LONGEST_S

# Longest part of the time of a fast stream that flushes take ...
FLUSH_SHARE = 0.1
# ... unless that would delay one for longer than this, from recording an image to the flush that shows it.
FLUSH_PERIOD_S = 0.2
# An image of a fast stream waits this long for a pause, if flushes have not taken their share yet.
FAST_WAIT_S = 0.01
# A stream without images for this long has paused.
QUIET_S = 0.002
# Shortest time between two flushes, also when the stream pauses again and again.
FLUSH_SPACING_S = 0.005
# After a pause of this length an image has a flush of its own anyway, so that it may come at once.
LONG_PAUSE_S = FLUSH_SPACING_S
# Shortest time between two progress reports of a fast stream. Clients of the driver see them at 10 Hz.
REPORT_SPACING_S = 0.02
# After a flush that was not reported: the next batch of the driver would have come.
LAST_REPORT_S = LONGEST_S + LONGEST_OF_READER_S


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
        # When a fast stream may be flushed again.
        self._rested_at = 0.0
        self._last_seconds = 0.0
        self._is_first = False

    def recorded(self) -> None:
        """Note that images were recorded just now."""
        now = self._clock()
        self._is_first = now - self._recorded_at > LONG_PAUSE_S and now >= self._earliest
        self._recorded_at = now
        if self._pending_since is None:
            self._pending_since = now

    def flushed(self, images_remain: bool, seconds: float = 0.0) -> None:
        """Note a flush that has just taken `seconds`, and whether recorded images are still invisible."""
        now = self._clock()
        # A single slow flush was interrupted by other processes; those of slow storage are slow each time.
        self._rested_at = now + min(seconds, self._last_seconds) / FLUSH_SHARE
        self._last_seconds = seconds
        if not self._is_first:
            # The other images of a burst need not keep the distance to its first one.
            self._flushed_at = now
        self._is_first = False
        self._pending_since = now if images_remain else None

    def cancel(self) -> None:
        """Forget images that wait for a flush: their file is closed."""
        self._pending_since = None

    @property
    def _earliest(self) -> float:
        """When a flush may begin that is not overdue."""
        return self._rested_at if self.batching_pause else 0.0

    @property
    def due_in(self) -> float | None:
        """Seconds until the next flush, 0 when it is due, None when every image is visible."""
        if self._pending_since is None:
            return None
        if self._is_first:
            return 0.0
        quiet = QUIET_S + (self.batching_pause if self.batching_pause > QUIET_S / 2 else 0.0)
        after_pause = max(self._recorded_at + quiet, self._flushed_at + FLUSH_SPACING_S, self._earliest)
        due_at = min(self._pending_since + FLUSH_PERIOD_S, after_pause)
        if self.batching_pause:
            due_at = min(due_at, max(self._pending_since + FAST_WAIT_S, self._earliest))
        return max(0.0, due_at - self._clock())


class ReportSchedule:
    """Says when the driver gets a progress report: after a flush, but not after each one of a fast stream."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._sent_at, self._due_at = -math.inf, math.inf

    def flushed(self, *, is_fast: bool) -> None:
        """Note a flush just now, and whether it was one of a fast stream."""
        now = self._clock()
        is_early = is_fast and now < self._sent_at + REPORT_SPACING_S
        self._due_at = now + LAST_REPORT_S if is_early else now

    def sent(self) -> None:
        """Note that a report was sent just now."""
        self._sent_at, self._due_at = self._clock(), math.inf

    def cancel(self) -> None:
        """Forget a report that is due: the response to the end of the run has the same."""
        self._due_at = math.inf

    @property
    def due_in(self) -> float:
        """Seconds until the next report, infinite if none is due."""
        return max(0.0, self._due_at - self._clock())
