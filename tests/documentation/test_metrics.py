"""The reference of metrics comes from the table in the code: run this file to write it."""

from __future__ import annotations

from pathlib import Path

from stddaq.daemon.metrics import TABLE, WANTED

PAGE = Path(__file__).parents[2] / "docs/reference/metrics.md"
_HEAD = """# Metrics

`stddaq-rest` serves these metrics at `/metrics`.
[Monitor the services](../how-to/monitor.md) says how to use them.

All metrics have the label `detector`, and those of a service also `service` and `instance_id`.
`instance_id` is the number of a writer or module, or the port of a live stream or of `stddaq-rest`.
Labels never hold image ids, users or names of files.
Counters begin at 0 when their service starts.
Counters of a service that has ended keep their last value; its gauges are left out.

| metric | type | labels | |
|---|---|---|---|
"""


def reference() -> str:
    """Return the page."""
    # Of `stddaq up` about other services; `stddaq_service_wanted` shows it.
    rows = [metric for name, metric in sorted(TABLE.items()) if metric is not WANTED]
    lines = []
    for metric in rows:
        labels = ", ".join(f"`{label}`" for label in metric.labels if not label.startswith("of_"))
        lines.append(f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help} |\n")
    return _HEAD + "".join(lines)


def test_reference_of_metrics_is_that_of_the_code() -> None:
    assert PAGE.read_text() == reference()


if __name__ == "__main__":
    PAGE.write_text(reference())
