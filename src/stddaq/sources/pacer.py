"""The times at which images are due: at a rate, without drift, and without a burst after a long delay."""

from __future__ import annotations

import time
from collections.abc import Callable

# Number of images that are due when there is no rate.
UNLIMITED = 2**63
# Thirty years between two images: arithmetic with the period stays finite.
SLOWEST_HZ = 1e-9
# Images due within this time are published together, because a wake-up costs as much as several images.
BATCH_S = 0.001
# A delayed source catches up with this much of its schedule and drops the rest.
MAX_DELAY_S = 1.0


class Pacer:
    """A schedule: image k is due k periods after its start, however late image k - 1 was.

    Attributes:
        n_dropped: images that a delayed source left out of its schedule; never decreases.
    """

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`rate` in images per second, 0: as fast as possible. `clock` returns seconds."""
        self.n_dropped = 0
        self._clock = clock
        self._period = 0.0
        self.restart()
        self.set_rate(rate)

    def set_rate(self, rate: float) -> None:
        """Change the rate. The next image is due one new period after the last one."""
        if self._n_done:
            self._last = self._start + (self._n_done - 1) * self._period
            self._n_done = 0
        self._period = 1 / max(rate, SLOWEST_HZ) if rate else 0.0
        self._batch = max(1, int(BATCH_S * rate))
        if self._last is not None:
            self._start = self._last + self._period

    def restart(self) -> None:
        """Start a new schedule whose first image is due now."""
        self._start, self._n_done = self._clock(), 0
        self._last: float | None = None

    def due(self) -> int:
        """Return the number of images that are due now."""
        if not self._period:
            return UNLIMITED
        late = self._clock() - self._start - self._n_done * self._period
        if late > MAX_DELAY_S + self._period:
            self.n_dropped += (dropped := int((late - MAX_DELAY_S) / self._period))
            self._start += dropped * self._period
            late -= dropped * self._period
        return int(late / self._period) + 1 if late >= 0 else 0

    def advance(self, n: int) -> None:
        """Count `n` images as published."""
        self._n_done += n

    def delay(self, n_wanted: int) -> float:
        """Return the seconds until the next batch of the `n_wanted` images still to come is due."""
        if not self._period:
            return 0.0
        last_of_batch = self._n_done + min(self._batch, n_wanted) - 1
        return max(0.0, self._start + last_of_batch * self._period - self._clock())
