"""Write the figures as a page of the documentation, with plots."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
import targets
from matplotlib.figure import Figure
from tables import Table

mpl.use("svg")
mpl.rcParams["svg.hashsalt"] = "stddaq"  # The same figures must give the same file.

import matplotlib.pyplot as plt  # noqa: E402  (the backend comes first)

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "explanations" / "performance.md"
REMARKS = Path(__file__).with_name("remarks.md")


def write(machine: str, tables: Mapping[str, Table]) -> None:
    """Write the page and its plots."""
    _plot_rates(tables["rates"], DOCS / "images" / "bench-rates.svg")
    _plot_growth(tables, DOCS / "images" / "bench-growth.svg")
    parts = [
        REMARKS.read_text(encoding="utf-8")
        .replace("{machine}", machine)
        .replace("{targets}", targets.table().markdown()),
        *(table.markdown() for table in tables.values()),
    ]
    PAGE.write_text("\n".join(parts), encoding="utf-8")
    print(f"written: {PAGE}")


def _plot_rates(table: Table, path: Path) -> None:
    """Plot bars of the rates of the bare loop and the services in GB/s."""
    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    names = [f"{row[0]}, {row[1]} writer{'s' if row[1] != 1 else ''}" for row in table.rows]
    places = range(len(names))
    axes.barh(
        [p - 0.2 for p in places], [float(row[3]) for row in table.rows], 0.4, label="bare pwritev loop"
    )
    axes.barh(
        [p + 0.2 for p in places], [float(row[5]) for row in table.rows], 0.4, label="driver and writers"
    )
    axes.set_yticks(list(places), names)
    axes.set_xlabel("GB/s, without a lost image")
    axes.invert_yaxis()
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)
    _save(figure, path)


def _plot_growth(tables: Mapping[str, Table], path: Path) -> None:
    """Plot the cost per image by run length and number of writers, and the master file by gaps."""
    figure, (runs, writers, master) = plt.subplots(1, 3, figsize=(10, 3), layout="constrained")
    for axes, name, label in ((runs, "growth", "images in a run"), (writers, "writers", "writers")):
        rows = tables[name].rows
        for column, what in ((1, "driver"), (2, "all writers")):
            axes.plot([row[0] for row in rows], [float(row[column]) for row in rows], "o-", label=what)
        axes.set(xscale="log", xlabel=label, ylabel="CPU us per image", ylim=(0, None))
        axes.legend()
    rows = [row for row in tables["master"].rows if row[1]]
    master.plot([row[1] for row in rows], [float(row[2]) for row in rows], "o-")
    master.set(xscale="log", yscale="log", xlabel="gaps in the ids", ylabel="s for the master file")
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
