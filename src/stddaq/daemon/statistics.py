"""The statistics line of a daemon: comma-separated pairs and a time in ns, once per period.

`detector=NAME,source=image,processed_times=0,repetition_rate_hz=0.00 13384997578250107`; the time is that
of the monotonic clock, as in the C++ services; `statistics_format` of the configuration may choose the line
protocol of InfluxDB instead. Counters are plain integers of the service, read here.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from stddaq.daemon.log import logger


class StatisticsTimer:
    """Says when the next line is due, and how long the period before it was."""

    def __init__(self, period: float) -> None:
        """`period` in seconds."""
        self._period = period
        self._last = time.monotonic()

    @property
    def due_in(self) -> float:
        """Seconds until the next line; 0 when it is due."""
        return max(0.0, self._last + self._period - time.monotonic())

    def restart(self) -> float:
        """Begin the next period. Returns the length of the one that ends, in seconds."""
        now = time.monotonic()
        elapsed, self._last = now - self._last, now
        return elapsed


def log_statistics(detector: str, pairs: Mapping[str, object]) -> None:
    """Print one line; floats get two decimals."""
    shown = (
        f"{key}={value:.2f}" if isinstance(value, float) else f"{key}={value}" for key, value in pairs.items()
    )
    logger.info(
        "detector=%s,%s %d",
        detector,
        ",".join(shown),
        time.monotonic_ns(),
        extra={"statistics": {"detector": detector, **pairs}},
    )


class RateCounter:
    """`processed_times` and `repetition_rate_hz` of a service. Increase `count`, read once a period."""

    def __init__(self) -> None:
        self.count = 0

    def pairs(self, elapsed: float) -> dict[str, object]:
        """The pairs of the period of `elapsed` seconds that ends now; the count starts again."""
        count, self.count = self.count, 0
        return {"processed_times": count, "repetition_rate_hz": count / elapsed if elapsed > 0 else 0.0}
