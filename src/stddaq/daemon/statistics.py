"""The statistics line of a daemon: comma-separated pairs and a time in ns, once per period.

`detector=NAME,source=image,processed_times=0,repetition_rate_hz=0.00 13384997578250107`; the time is that of
the monotonic clock, as in the C++ services. With `statistics_format` the configuration chooses the line
protocol of InfluxDB instead. Counts are those of the period: the differences of the daemon's counters.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from stddaq.config import DetectorConfig
from stddaq.daemon import log
from stddaq.daemon.log import logger
from stddaq.daemon.metrics import Metric, Registry, Values
from stddaq.daemon.metrics_page import published_page
from stddaq.daemon.service_manager import service_manager

# Daemons check at least this often what may be removed from outside.
LONGEST_WAIT_S = 1.0


class Period:
    """The counters of a daemon in one period of `seconds`."""

    def __init__(self, seconds: float, before: Values, now: Values) -> None:
        """`before` and `now`: readings of the registry at the start and at the end."""
        self.seconds = seconds
        self._before, self._now = before, now

    def total(self, metric: Metric, **labels: str) -> float:
        """Return the value at the end of the period, summed over the series that have these labels."""
        return self._sum(self._now, metric, labels)

    def count(self, metric: Metric, **labels: str) -> float:
        """Return by how much a counter has grown in the period, summed as in `total`."""
        return self._sum(self._now, metric, labels) - self._sum(self._before, metric, labels)

    def rate(self, metric: Metric) -> dict[str, object]:
        """Return the pairs `processed_times` and `repetition_rate_hz`."""
        count = self.count(metric)
        return {
            "processed_times": count,
            "repetition_rate_hz": count / self.seconds if self.seconds > 0 else 0.0,
        }

    @staticmethod
    def _sum(values: Values, metric: Metric, labels: Mapping[str, str]) -> float:
        wanted = labels.items()
        found = [
            value
            for series, value in values.items()
            if series.metric is metric
            and wanted <= dict(zip(metric.labels, series.labels, strict=True)).items()
        ]
        if not found:
            raise KeyError(f"{metric.name}{dict(labels)}")
        return sum(found)


class StatisticsLine:
    """Writes the statistics line of a daemon once per period, and its metrics page."""

    def __init__(
        self,
        config: DetectorConfig,
        registry: Registry,
        pairs: Callable[[Period], Mapping[str, object]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`pairs` returns what follows `detector` in the line."""
        self._detector, self._length = config.detector_name, config.stats_collection_period
        self._registry, self._pairs, self._clock = registry, pairs, clock
        self._since, self._before = clock(), registry.read()
        self._page = published_page(registry, self._length)

    @property
    def due_in(self) -> float:
        """Seconds until the next line, at most 1; 0 when it is due. The longest wait of a daemon."""
        return min(LONGEST_WAIT_S, max(0.0, self._since + self._length - self._clock()))

    def write_if_due(self) -> bool:
        """Write the line when it is due. Return whether it was. Call it in every turn of the main loop."""
        # A service that is refused, because another one has its place, must not replace the other's page.
        if self._page and log.is_ready():
            self._page.publish_if_due()
        service_manager.alive()
        if self.due_in > 0:
            return False
        now, values = self._clock(), self._registry.read()
        period = Period(now - self._since, self._before, values)
        self._since, self._before = now, values
        log_statistics(self._detector, self._pairs(period))
        return True


def log_statistics(detector: str, pairs: Mapping[str, object]) -> None:
    """Log one line; floats get two decimals."""
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
