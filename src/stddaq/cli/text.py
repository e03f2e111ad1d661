"""Statuses and bad images in words, and tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stddaq.text import escaped

if TYPE_CHECKING:
    from stddaq.client import DriverStatus

# Images that parts of a run may be apart before it is said.
N_APART = 10


def status_line(status: DriverStatus) -> str:
    """Return a status in one line: `recording: 120 of 1000 images, 2 overwritten`."""
    parts = []
    if status.count is not None:
        of = "" if status.n_image is None else f" of {status.n_image}"
        parts.append(f"{status.count}{of} images")
    if bad := bad_text(status):
        parts.append(bad)
    if behind := behind_text(status):
        parts.append(behind)
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


def behind_text(status: DriverStatus) -> str:
    """Return which parts of a run of several drivers are behind: `part 2 has 100, others up to 200`.

    Empty if there is none, or one driver. The count of the run is that of the part with the fewest images.
    """
    counts = {}
    # Any server may send any `parts`.
    parts = status.raw.get("parts")
    for part in parts if isinstance(parts, list) else ():
        match part:
            case {"part": int() as number, "count": (int() | None) as count}:
                counts[number] = count or 0
    most = max(counts.values(), default=0)
    # Drivers report at different times, some ten times a second.
    limit = most - max(N_APART, most // 10)
    behind = [f"part {number} has {count}" for number, count in counts.items() if count < limit]
    return f"{', '.join(behind)}, others up to {most}" if behind else ""


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a line for each row, with the columns below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
