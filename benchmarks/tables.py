"""The result of a measurement: rows of figures under named columns, printed and written as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

Cell = str | int | float


@dataclass(slots=True)
class Table:
    """The figures of one measurement; `note` describes them and their target."""

    name: str
    title: str
    note: str
    columns: Sequence[str]
    rows: list[list[Cell]] = field(default_factory=list)

    def add(self, *cells: Cell) -> None:
        """Add a row and print it, to show the progress of a long measurement."""
        if not self.rows:
            print(f"\n{self.title}\n  " + " | ".join(self.columns))
        self.rows.append(list(cells))
        print("  " + " | ".join(map(shown, cells)), flush=True)

    def markdown(self) -> str:
        """Return the table with its title and note."""
        lines = [f"## {self.title}", "", self.note, ""]
        lines.append("| " + " | ".join(self.columns) + " |")
        lines.append("|" + " --- |" * len(self.columns))
        lines += ["| " + " | ".join(map(shown, row)) + " |" for row in self.rows]
        return "\n".join(lines) + "\n"

    def as_json(self) -> dict[str, Any]:
        """Return all fields, for `Table(**...)`."""
        return asdict(self)


def shown(cell: Cell) -> str:
    """Return a cell as it is printed: a number with about three digits."""
    if not isinstance(cell, float):
        return str(cell)
    if cell == 0:
        return "0"
    digits = 2 if abs(cell) < 10 else 1 if abs(cell) < 100 else 0
    return f"{cell:,.{digits}f}"


def spread(values: Sequence[float]) -> str:
    """`median (min-max)`."""
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"
