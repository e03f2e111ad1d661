"""The statistics line: once a period, with the differences of cumulative counters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import pytest
from support.processes.deployment import make_config

from stddaq.config import DetectorConfig
from stddaq.daemon import metrics, statistics
from stddaq.daemon.metrics import Registry
from stddaq.daemon.statistics import LONGEST_WAIT_S, Period, StatisticsLine


class Daemon:
    """A daemon's counters in a registry, its clock and its statistics line."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.counts: Counter[str] = Counter()
        self.registry = Registry("GF2", "test")
        self.registry.add(metrics.IMAGES_RECEIVED, lambda: self.counts["received"], source="image")
        for reason in ("late", "missing"):
            self.registry.add(
                metrics.CAMERA_IMAGES_LEFT_OUT, lambda key=reason: self.counts[key], reason=reason
            )
        self.lines: list[Mapping[str, object]] = []
        monkeypatch.setattr(statistics, "log_statistics", lambda _, pairs: self.lines.append(pairs))
        config = DetectorConfig.parse(make_config(stats_collection_period=10))
        self.line = StatisticsLine(config, self.registry, self.pairs, lambda: self.now)

    def pairs(self, period: Period) -> dict[str, object]:
        return {
            **period.rate(metrics.IMAGES_RECEIVED),
            "n_left_out": period.count(metrics.CAMERA_IMAGES_LEFT_OUT),
            "n_late": period.count(metrics.CAMERA_IMAGES_LEFT_OUT, reason="late"),
            "n_late_since_start": period.total(metrics.CAMERA_IMAGES_LEFT_OUT, reason="late"),
        }


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Daemon:
    return Daemon(monkeypatch)


def test_line_is_written_once_a_period(daemon: Daemon) -> None:
    assert daemon.line.due_in == LONGEST_WAIT_S
    assert not daemon.line.write_if_due()
    daemon.now += 9.5
    assert daemon.line.due_in == 0.5
    assert not daemon.line.write_if_due()
    daemon.now += 1
    assert daemon.line.due_in == 0
    assert daemon.line.write_if_due()
    assert not daemon.line.write_if_due()
    assert daemon.line.due_in == LONGEST_WAIT_S
    assert len(daemon.lines) == 1


def test_counts_are_of_the_period_and_totals_since_the_start(daemon: Daemon) -> None:
    for late in (3, 4):
        daemon.counts += Counter(received=50, late=late, missing=1)
        daemon.now += 20
        assert daemon.line.write_if_due()
    assert daemon.lines == [
        {
            "processed_times": 50,
            "repetition_rate_hz": 2.5,
            "n_left_out": late + 1,
            "n_late": late,
            "n_late_since_start": total,
        }
        for late, total in ((3, 3), (4, 7))
    ]


def test_counts_are_whole_numbers(daemon: Daemon) -> None:
    daemon.now += 10
    daemon.line.write_if_due()
    assert [type(value) for value in daemon.lines[0].values()] == [int, float, int, int, int]


def test_counts_from_before_the_line_was_made_belong_to_no_period(daemon: Daemon) -> None:
    daemon.counts["received"] = 7
    config = DetectorConfig.parse(make_config(stats_collection_period=1))
    line = StatisticsLine(config, daemon.registry, daemon.pairs, lambda: daemon.now)
    daemon.now += 1
    assert line.write_if_due()
    assert daemon.lines[0]["processed_times"] == 0


def test_unknown_metric_is_an_error_and_not_0(daemon: Daemon) -> None:
    period = Period(1.0, daemon.registry.read(), daemon.registry.read())
    with pytest.raises(KeyError, match="stddaq_images_sent_total"):
        period.count(metrics.IMAGES_SENT)
