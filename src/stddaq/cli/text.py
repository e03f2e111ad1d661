"""Statuses and bad images in words, and tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stddaq.text import escaped

if TYPE_CHECKING:
    from stddaq.client import DriverStatus


def status_line(status: DriverStatus) -> str:
    """Return a status in one line: `recording: 120 of 1000 images, 2 overwritten`."""
    parts = []
    if status.count is not None:
        of = "" if status.n_image is None else f" of {status.n_image}"
        parts.append(f"{status.count}{of} images")
    if bad := bad_text(status):
        parts.append(bad)
    if status.reason:
        parts.append(status.reason)
    # In one line, whatever the driver sends.
    return escaped(f"{status.status}: {', '.join(parts)}" if parts else status.status)


def bad_text(status: DriverStatus) -> str:
    """Return the numbers of bad images: `2 overwritten, 3 skipped`; empty when there are none."""
    numbers = {
        "damaged": status.n_damaged,
        "overwritten": status.n_overwritten,
        "failed": status.n_failed,
        "skipped": status.n_skipped,
    }
    return ", ".join(f"{number} {kind}" for kind, number in numbers.items() if number)


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a line for each row, with the columns below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
