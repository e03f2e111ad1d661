"""What the services of the detectors publish: read once a second at most, for all who ask."""

from __future__ import annotations

import contextlib
import glob
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stddaq.config import DetectorConfig
from stddaq.daemon import metrics
from stddaq.daemon.health import ServiceHealth, health_of
from stddaq.daemon.log import logger
from stddaq.daemon.metrics import Metric
from stddaq.daemon.metrics_reader import Page, read_pages
from stddaq.dataplane.shared_segment import SHM_DIRECTORY
from stddaq.errors import ConfigError
from stddaq.web.disks import Disks
from stddaq.web.live.browser_counts import BrowserCounts
from stddaq.web.metrics_text import Sample, metrics_text, series_text
from stddaq.web.process_usage import process_usage

CACHE_S = 1.0
_SERVICE_LABELS = ("detector", "service", "instance_id")


@dataclass(frozen=True, slots=True)
class MonitoredDetector:
    """A detector: its name, its configuration file, and directories if that names none."""

    name: str
    config_path: Path
    default_roots: Sequence[Path] = ()

    def roots(self, config: DetectorConfig) -> list[Path]:
        """Return the directories of its files, each once."""
        return [*dict.fromkeys([*map(Path, config.allowed_roots)] or self.default_roots)]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All services at one moment. `time_s` is of the monotonic clock.

    Attributes:
        samples: of all services and of this machine, in any order.
        counters, gauges, rates: by service, with the series as text; rates are of the counters, per second.
        heartbeats_s: when the page of a service was written, of the monotonic clock.
    """

    time_s: float
    services: list[ServiceHealth] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    counters: dict[ServiceKey, dict[str, float]] = field(default_factory=dict)
    gauges: dict[ServiceKey, dict[str, float]] = field(default_factory=dict)
    rates: dict[ServiceKey, dict[str, float]] = field(default_factory=dict)
    heartbeats_s: dict[ServiceKey, float] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """All samples in the text format of Prometheus."""
        return metrics_text(self.samples)


@dataclass(frozen=True, slots=True)
class ServiceKey:
    """One start of a service."""

    detector: str
    service: str
    instance_id: str
    started_s: float


class Monitoring:
    """Reads the pages of `detectors`.

    Attributes:
        n_rejected: readings of pages that are not valid, by detector.
        browsers: what the browsers receive, by detector.
        grafana_url: where the metrics are drawn, if anywhere.
    """

    def __init__(self, detectors: Sequence[MonitoredDetector] = (), grafana_url: str | None = None) -> None:
        self._detectors = tuple(detectors)
        self.grafana_url = grafana_url
        # Of the last valid configurations.
        self._roots = {
            detector.name: detector.roots(config) if (config := _valid(detector.config_path)) else []
            for detector in self._detectors
        }
        self._disks = Disks()
        self.n_rejected: Counter[str] = Counter()
        self.browsers: defaultdict[str, BrowserCounts] = defaultdict(BrowserCounts)
        self._rejected: Mapping[str, str] = {}
        self._lock = threading.Lock()
        self._latest = Snapshot(float("-inf"))

    @property
    def roots(self) -> list[Path]:
        """The directories of the files of all detectors."""
        return [root for roots in self._roots.values() for root in roots]

    def roots_of(self, detector_name: str) -> Sequence[Path]:
        """Return the directories of the files of one detector."""
        return self._roots.get(detector_name, ())

    def snapshot(self) -> Snapshot:
        """Return what is known, at most a second old. It may block; any thread may call it."""
        with self._lock:
            now = time.monotonic()
            if now - self._latest.time_s >= CACHE_S:
                self._latest = self._read(now, self._latest)
            return self._latest

    def _read(self, now: float, before: Snapshot) -> Snapshot:
        snapshot = Snapshot(now)
        rejected: dict[str, str] = {}
        for detector in self._detectors:
            pages = read_pages(detector.name)
            self.n_rejected[detector.name] += len(pages.rejected)
            rejected |= {f"{detector.name}.metrics/{name}": why for name, why in pages.rejected.items()}
            services = health_of(detector.name, pages)
            snapshot.services.extend(services)
            snapshot.samples.extend(self._machine_samples(detector))
            for service in services:
                _add_service(snapshot, service, before)
        self._log_rejected(rejected)
        return snapshot

    def _log_rejected(self, rejected: Mapping[str, str]) -> None:
        for name, why in rejected.items():
            if self._rejected.get(name) != why:
                logger.warning("metrics page %s rejected: %s", name, why)
        self._rejected = rejected

    def _machine_samples(self, detector: MonitoredDetector) -> Iterator[Sample]:
        labels = {"detector": detector.name}
        config = _valid(detector.config_path)
        yield Sample(metrics.CONFIGURATION_VALID, labels, config is not None)
        if config:
            self._roots[detector.name] = detector.roots(config)
            yield Sample(metrics.RING_SLOTS, labels, config.n_slots)
        yield Sample(metrics.RING_UNRESERVED_BYTES, labels, unreserved_bytes(detector.name))
        if usage := self._disks.usage(SHM_DIRECTORY):
            yield Sample(metrics.SHARED_MEMORY_FREE_BYTES, labels, usage.free_bytes)
        for root in self._roots[detector.name]:
            if usage := self._disks.usage(root):
                where = labels | {"path": str(root)}
                yield Sample(metrics.DISK_FREE_BYTES, where, usage.free_bytes)
                yield Sample(metrics.DISK_SIZE_BYTES, where, usage.size_bytes)


def _key(service: ServiceHealth, page: Page) -> ServiceKey:
    return ServiceKey(service.detector, service.service, service.instance_id, page.started_s)


def _series(samples: Sequence[Sample], kind: str) -> dict[str, float]:
    return {
        series_text(sample, without=_SERVICE_LABELS): sample.value
        for sample in samples
        if sample.metric.kind == kind
    }


def _add_service(snapshot: Snapshot, service: ServiceHealth, before: Snapshot) -> None:
    """Add a service and its rates since `before`."""
    about, of_page = list(_samples_about(service)), list(_samples_of_page(service))
    snapshot.samples.extend(about + of_page)
    if (page := service.page) is None:
        return
    key = _key(service, page)
    about_counters, page_counters = _series(about, "counter"), _series(of_page, "counter")
    snapshot.counters[key] = about_counters | page_counters
    snapshot.gauges[key] = _series(about + of_page, "gauge")
    snapshot.heartbeats_s[key] = page.heartbeat_s
    rates = snapshot.rates[key] = {}
    if (counted := before.counters.get(key)) is None:
        return
    rates |= _rates(about_counters, counted, snapshot.time_s - before.time_s)
    # A page is written about once a second, so that none or two of its writings may be between two readings.
    seconds = page.heartbeat_s - before.heartbeats_s[key]
    if seconds > 0:
        rates |= _rates(page_counters, counted, seconds)
    else:
        known = before.rates[key] if service.state == "works" else dict.fromkeys(page_counters, 0.0)
        rates |= {name: known[name] for name in page_counters if name in known}


def _rates(now: Mapping[str, float], before: Mapping[str, float], seconds: float) -> dict[str, float]:
    return {name: (value - before[name]) / seconds for name, value in now.items() if name in before}


def _labels(service: ServiceHealth) -> dict[str, str]:
    return {
        "detector": service.detector,
        "service": service.service,
        "instance_id": service.instance_id,
    }


def _samples_about(service: ServiceHealth) -> Iterator[Sample]:
    """Return what this process knows of a service now."""
    labels = _labels(service)
    yield Sample(metrics.SERVICE_UP, labels, service.state == "works")
    yield Sample(metrics.SERVICE_WANTED, labels, service.is_wanted)
    if service.n_restarts is not None:
        yield Sample(metrics.SERVICE_RESTARTS, labels, service.n_restarts)
    if (page := service.page) is None:
        return
    yield Sample(metrics.SERVICE_HEARTBEAT_AGE, labels, page.age_s)
    yield Sample(metrics.SERVICE_START_TIME, labels, page.started_s)
    yield Sample(metrics.SERVICE_INFO, labels | {"version": page.version, "config_etag": page.config_etag}, 1)
    usage: Mapping[Metric, float] = process_usage(page.pid, page.start_ticks) if page.is_running else {}
    for metric, value in usage.items():
        yield Sample(metric, labels, value)


def _samples_of_page(service: ServiceHealth) -> Iterator[Sample]:
    """Return what a service has written into its page."""
    if (page := service.page) is None:
        return
    labels = _labels(service)
    for series, value in page.values.items():
        if series.metric in (metrics.WANTED, metrics.SERVICE_RESTARTS):
            continue  # They concern other services: see `ServiceHealth`.
        # What has been counted stays true; a gauge of a service that does not work is none.
        if series.metric.kind == "counter" or service.state == "works":
            own = dict(zip(series.metric.labels, series.labels, strict=True))
            yield Sample(series.metric, labels | own, value)


def _valid(config_path: Path) -> DetectorConfig | None:
    try:
        return DetectorConfig.load(config_path)
    except ConfigError:
        return None


def unreserved_bytes(detector_name: str) -> int:
    """Return the size of a detector's segments without the memory that they have."""
    missing = 0
    for path in SHM_DIRECTORY.glob(f"{glob.escape(detector_name)}-*"):
        with contextlib.suppress(OSError):
            status = path.lstat()
            missing += max(0, status.st_size - status.st_blocks * 512)
    return missing
