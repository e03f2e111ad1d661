"""The targets of this project, with the figures of all measurements: the first table of the page.

Each measurement that is written adds its figures to history.json. Machines differ, and one machine differs
from hour to hour, so a figure that has doubled asks for a look, not more. `make ratios` compares with loops
of the same minute.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tables import Cell, Table, shown

HISTORY = Path(__file__).with_name("history.json")
# Figures of earlier measurements that the page shows.
SHOWN = 5


@dataclass(frozen=True, slots=True)
class Target:
    """One figure of one table: in `column`, of the row that begins with `row`."""

    name: str
    target: str
    table: str
    row: Sequence[Cell]
    column: str

    def figure(self, tables: Mapping[str, Table]) -> float | None:
        """Return the figure of these tables, None if they do not have it."""
        table = tables.get(self.table)
        if table is None or self.column not in table.columns:
            return None
        place = list(table.columns).index(self.column)
        for row in table.rows:
            if row[: len(self.row)] == list(self.row):
                # Before the range in brackets, if there is one.
                return float(str(row[place]).split(" ", 1)[0].replace(",", ""))
        return None


A, B, C, NONE = "a: 2016x2016", "b: 528x280", "c: 480x128", "none: 16x16"
TARGETS = (
    *(
        Target(f"writer / `pwritev`, CPU, {row[0]}", limit, "cost", (row, 2), "ratio")
        for row, limit in ((A, "1.2"), (B, "1.2"), (C, "1.5"))
    ),
    *(
        Target(
            f"highest rate / `pwritev`, 2 writers, {row[0]}",
            "at least 0.9",
            "rates",
            (row, 2),
            "sustained / bare",
        )
        for row in (A, B, C)
    ),
    Target("driver at 40 Hz of a, % of a core", "1", "slow", (A,), "% of a core"),
    Target("idle driver, % of a core", "0.1", "idle", ("std_det_driver",), "CPU %"),
    Target("the same with a client", "0.3", "idle", ("std_det_driver with a client",), "CPU %"),
    Target("memory of driver, 2 writers, live stream, MB", "80", "memory", ("all",), "anonymous MB"),
    Target("readable, b at 1 kHz, 99 %, ms", "20", "latency", (B, "1 kHz"), "99 % ms"),
    Target("readable, 16x16 at 10 kHz, 99 %, ms", "50", "latency", (NONE, "10 kHz"), "99 % ms"),
    Target("images without pixels, kHz", "100", "metadata", (100_000.0, 2), "sustained kHz"),
    Target("live stream / pyzmq, CPU, a", "1.3", "live", (A,), "ratio"),
    Target("live stream / pyzmq, CPU, c", "1.3", "live", (C,), "ratio"),
    Target(
        "point of a plan, ms more than `ophyd.sim.det`",
        "5",
        "points",
        ("ophyd", "16x16", 1, "read"),
        "more, ms",
    ),
)


def add(date: str, measured: Mapping[str, Table]) -> None:
    """Add the figures of these tables, measured on `date`, to the history."""
    found = {target.name: target.figure(measured) for target in TARGETS}
    figures = {name: round(figure, 3) for name, figure in found.items() if figure is not None}
    if figures:
        history = [*_history(), {"date": date, "figures": figures}]
        HISTORY.write_text(json.dumps(history, indent=1) + "\n", encoding="utf-8")


def table() -> Table:
    """Return the latest figure of each target, and those before it."""
    found = Table(
        "targets",
        "Targets",
        "Each figure is one of a table below; earlier ones, of other hours and machines, the last one first.",
        ("figure", "target", "now", "before"),
    )
    history = _history()
    for target in TARGETS:
        values = [
            shown(entry["figures"][target.name])
            for entry in reversed(history)
            if target.name in entry["figures"]
        ]
        if values:
            found.rows.append([target.name, target.target, values[0], ", ".join(values[1 : SHOWN + 1])])
    return found


def _history() -> list[dict[str, Any]]:
    return json.loads(HISTORY.read_text(encoding="utf-8")) if HISTORY.exists() else []
