"""Which image a browser gets next, without I/O.

One image is on its way to a browser. The next, always the newest, goes when the browser has drawn it and says
so. A slow browser thus skips images and never shows an old one, and the memory of each is bounded.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

from stddaq.web.live.browser_counts import BrowserCounts

ACKNOWLEDGE_TIMEOUT_S = 30.0
# Over a slow line, a second image goes while the answer to the first is on its way. A slow browser gets none:
# it would only wait there, and be old when it is drawn.
LONG_ROUND_TRIP_S = 0.1


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """A message of the preview service: its header, and the image if there is one."""

    header: dict[str, Any]
    payload: memoryview


class Pace:
    """The images of one browser. The clock is that of the caller.

    Attributes:
        counts: of all browsers of the detector.
    """

    def __init__(self, max_hz: float = float("inf"), counts: BrowserCounts | None = None) -> None:
        self.counts = counts or BrowserCounts()
        self.max_hz = max_hz
        self._newest: Picture | None = None
        self._skipped_since = 0
        self._on_the_way: deque[tuple[object, float]] = deque()
        self._round_trip_s, self._sent_at = 0.0, float("-inf")

    def offer(self, picture: Picture) -> None:
        """Note the newest image."""
        if self._newest is not None:
            self.counts.n_skipped += 1
            self._skipped_since += 1
        self._newest = picture

    def acknowledge(self, image: object, now: float, busy_s: float = 0.0) -> None:
        """Note that the browser has drawn an image, and those sent before it.

        `busy_s`: its time from the arrival of the image until it was drawn.
        """
        if any(sent == image for sent, _ in self._on_the_way):
            while self._on_the_way:
                sent, sent_at = self._on_the_way.popleft()
                self._round_trip_s = now - sent_at - busy_s
                if sent == image:
                    return

    def due_in(self, now: float) -> float:
        """Return the seconds until `take` returns an image; infinite if it waits for something."""
        limit = 2 if self._round_trip_s > LONG_ROUND_TRIP_S else 1
        if self._newest is None or len(self._on_the_way) >= limit:
            return float("inf")
        return max(0.0, self._sent_at + 1 / self.max_hz - now)

    def take(self, now: float) -> Picture | None:
        """Return the image to send now, if any, with the number of those skipped before it."""
        if self.due_in(now) > 0 or self._newest is None:
            return None
        picture, self._newest = self._newest, None
        skipped, self._skipped_since = self._skipped_since, 0
        self._on_the_way.append((picture.header.get("image"), now))
        self._sent_at = now
        self.counts.n_sent += 1
        return Picture({**picture.header, "skipped": skipped}, picture.payload)

    def is_silent(self, now: float) -> bool:
        """Return whether the browser has not acknowledged an image in time."""
        return bool(self._on_the_way) and now - self._on_the_way[0][1] > ACKNOWLEDGE_TIMEOUT_S
