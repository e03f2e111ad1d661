"""Arguments and words that several sub-commands share. Imports nothing that is slow."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from stddaq.wire.default_addresses import DEFAULT_URL

if TYPE_CHECKING:
    from stddaq.client import DriverStatus


def add_url(parser: argparse.ArgumentParser) -> None:
    """`--url` of the driver."""
    parser.add_argument("--url", default=DEFAULT_URL, help=f"the driver ({DEFAULT_URL})")


def status_line(status: DriverStatus) -> str:
    """A status in one line: `recording: 120 of 1000 images, 2 missing`."""
    parts = []
    if status.count is not None:
        of = "" if status.n_image is None else f" of {status.n_image}"
        parts.append(f"{status.count}{of} images")
    if gaps := gaps_text(status):
        parts.append(gaps)
    if status.reason:
        parts.append(status.reason)
    return f"{status.status}: {', '.join(parts)}" if parts else status.status


def gaps_text(status: DriverStatus) -> str:
    """What is not as it should be: `2 missing, 3 ids skipped`; empty when nothing is."""
    parts = [f"{status.n_missing} missing"] if status.n_missing else []
    if status.n_skipped:
        parts.append(f"{status.n_skipped} ids skipped")
    return ", ".join(parts)


def bytes_text(n_bytes: float) -> str:
    """A size for people: `41.9 MB` (powers of ten)."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} B" if unit == "B" else f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.3g} TB"
