"""The ring buffers and disks of this machine, out of the samples of a snapshot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic import BaseModel

from stddaq.daemon import metrics
from stddaq.daemon.metrics import Metric
from stddaq.web.metrics_text import Sample


class RingReader(BaseModel):
    """How far a reader of a ring buffer is behind; at `ratio` 1 it loses images."""

    service: str
    id: str
    lag: float
    ratio: float | None


class RingStatus(BaseModel):
    """The ring buffers of a detector."""

    detector: str
    n_slots: int | None
    unreserved_bytes: int | None
    """Memory that they still need."""
    shm_free_bytes: int | None
    readers: list[RingReader]


class DiskStatus(BaseModel):
    """The file system of a root; the numbers are null while it does not answer."""

    path: str
    free_bytes: int | None
    size_bytes: int | None


def rings_of(samples: Iterable[Sample]) -> list[RingStatus]:
    """Return the ring buffers of each detector."""
    by_metric = _by_metric(samples)

    def value(metric: Metric, **labels: str) -> float | None:
        found = (s.value for s in by_metric.get(metric, ()) if labels.items() <= dict(s.labels).items())
        return next(found, None)

    def whole(metric: Metric, detector: str) -> int | None:
        found = value(metric, detector=detector)
        return None if found is None else int(found)

    def readers(detector: str) -> list[RingReader]:
        return [
            RingReader(
                service=s.labels["service"],
                id=s.labels["instance_id"],
                lag=s.value,
                ratio=value(metrics.RING_LAG_RATIO, **s.labels),
            )
            for s in by_metric.get(metrics.RING_LAG_IMAGES, ())
            if s.labels["detector"] == detector
        ]

    return [
        RingStatus(
            detector=detector,
            n_slots=whole(metrics.RING_SLOTS, detector),
            unreserved_bytes=whole(metrics.RING_UNRESERVED_BYTES, detector),
            shm_free_bytes=whole(metrics.SHARED_MEMORY_FREE_BYTES, detector),
            readers=readers(detector),
        )
        for detector in sorted({s.labels["detector"] for s in by_metric.get(metrics.CONFIGURATION_VALID, ())})
    ]


def disks_of(samples: Iterable[Sample], roots: Iterable[Path]) -> list[DiskStatus]:
    """Return the file systems of the roots, also of those that do not answer."""
    by_metric = _by_metric(samples)

    def value(metric: Metric, path: str) -> int | None:
        return next((int(s.value) for s in by_metric.get(metric, ()) if s.labels["path"] == path), None)

    return [
        DiskStatus(
            path=path,
            free_bytes=value(metrics.DISK_FREE_BYTES, path),
            size_bytes=value(metrics.DISK_SIZE_BYTES, path),
        )
        for path in sorted({str(root) for root in roots})
    ]


def _by_metric(samples: Iterable[Sample]) -> Mapping[Metric, list[Sample]]:
    found: dict[Metric, list[Sample]] = {}
    for sample in samples:
        found.setdefault(sample.metric, []).append(sample)
    return found
