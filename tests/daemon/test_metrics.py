"""The registry of a daemon's counters: names, labels, values."""

from __future__ import annotations

import re

import pytest

from stddaq.daemon import metrics
from stddaq.daemon.metrics import Metric, Registry

TABLE = [value for value in vars(metrics).values() if isinstance(value, Metric)]


@pytest.fixture
def registry() -> Registry:
    return Registry("GF2", "std_det_writer", "3")


@pytest.mark.parametrize("metric", TABLE, ids=lambda metric: metric.name)
def test_metric_is_named_by_the_convention_of_prometheus(metric: Metric) -> None:
    assert re.fullmatch(r"stddaq(_[a-z]+)+", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert metric.help.endswith(".")
    assert not {"detector", "service", "instance_id"} & set(metric.labels)


def test_names_are_unique() -> None:
    assert len({metric.name for metric in TABLE}) == len(TABLE)


def test_labels_of_the_daemon_are_those_of_its_registry(registry: Registry) -> None:
    assert registry.labels == {"detector": "GF2", "service": "std_det_writer", "instance_id": "3"}


def test_values_are_those_of_the_moment(registry: Registry) -> None:
    counts = [0, 5]
    registry.add(metrics.IMAGES_WRITTEN, lambda: counts[0], source="image")
    registry.add(metrics.IMAGES_FAILED, lambda: counts[1], source="image")
    assert list(registry.read().values()) == [0, 5]
    counts[0] = 7
    assert {series.metric.name: value for series, value in registry.read().items()} == {
        "stddaq_images_written_total": 7,
        "stddaq_images_failed_total": 5,
    }


def test_series_of_one_metric_differ_in_their_labels(registry: Registry) -> None:
    for reason, count in (("late", 1), ("missing", 2)):
        registry.add(metrics.CAMERA_IMAGES_LEFT_OUT, lambda count=count: count, reason=reason)
    assert {series.labels: value for series, value in registry.read().items()} == {
        ("late",): 1,
        ("missing",): 2,
    }


@pytest.mark.parametrize("labels", [{}, {"reason": "late"}, {"source": "image", "reason": "late"}])
def test_labels_that_differ_from_those_of_the_metric_are_refused(
    registry: Registry, labels: dict[str, str]
) -> None:
    with pytest.raises(ValueError, match=r"stddaq_images_written_total: expected labels \('source',\), got"):
        registry.add(metrics.IMAGES_WRITTEN, lambda: 0, **labels)


def test_series_is_added_once(registry: Registry) -> None:
    registry.add(metrics.IMAGES_WRITTEN, lambda: 0, source="image")
    with pytest.raises(ValueError, match="twice"):
        registry.add(metrics.IMAGES_WRITTEN, lambda: 0, source="image")
