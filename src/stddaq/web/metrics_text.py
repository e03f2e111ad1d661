"""The text format 0.0.4 of Prometheus."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from stddaq.daemon.metrics import Metric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})


class Sample(NamedTuple):
    """A value of a metric, with all its labels."""

    metric: Metric
    labels: Mapping[str, str]
    value: float


def metrics_text(samples: Iterable[Sample]) -> str:
    """Return samples as text, grouped by metric."""
    by_metric: dict[Metric, list[str]] = {}
    for sample in samples:
        by_metric.setdefault(sample.metric, []).append(f"{series_text(sample)} {_number(sample.value)}")
    lines = []
    for metric in sorted(by_metric, key=lambda metric: metric.name):
        lines += [f"# HELP {metric.name} {metric.help}", f"# TYPE {metric.name} {metric.kind}"]
        lines += by_metric[metric]
    return "".join(f"{line}\n" for line in lines)


def series_text(sample: Sample, without: Sequence[str] = ()) -> str:
    """Return the name and the labels of a sample, without some: `name{label="value"}`."""
    labels = ",".join(
        f'{name}="{value.translate(_ESCAPES)}"'
        for name, value in sample.labels.items()
        if name not in without
    )
    return f"{sample.metric.name}{{{labels}}}" if labels else sample.metric.name


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))
