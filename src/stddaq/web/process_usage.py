"""What a process uses, from /proc."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from stddaq.daemon import metrics
from stddaq.daemon.metrics import Metric

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_ANONYMOUS = re.compile(r"^RssAnon:\s+(\d+) kB$", re.MULTILINE)


def process_usage(pid: int, start_ticks: int) -> dict[Metric, float]:
    """Return CPU time, memory and descriptors of the process that has started then, as far as readable."""
    process = Path(f"/proc/{pid}")
    found: dict[Metric, float] = {}
    try:
        fields = (process / "stat").read_text().rpartition(")")[2].split()
        if int(fields[19]) != start_ticks:
            return {}
        found[metrics.PROCESS_CPU_SECONDS] = (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
        if match := _ANONYMOUS.search((process / "status").read_text()):
            found[metrics.PROCESS_MEMORY] = int(match[1]) * 1024
        # Of processes of other users only root can list them.
        found[metrics.PROCESS_DESCRIPTORS] = sum(1 for _ in _descriptors(process))
    except (OSError, ValueError, IndexError):
        pass  # It has ended, belongs to another user, or is in another container.
    return found


def _descriptors(process: Path) -> Iterator[Path]:
    return (process / "fd").iterdir()
