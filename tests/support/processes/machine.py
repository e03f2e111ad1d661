"""How busy the machine is: promises of time hold where each process has a processor."""

from __future__ import annotations

import os
from pathlib import Path

PRESSURE = Path("/proc/pressure/cpu")
# What the pressure is a share of.
PERIOD_S = 10.0
# The pressure says little near 1.
MOST = 20.0


def overload() -> float:
    """Return how many times longer everything takes, because more processes are ready than processors.

    From the load of the last minute, and the share of the last ten seconds in which a process was waiting.
    """
    return min(MOST, max(1.0, os.getloadavg()[0] / len(os.sched_getaffinity(0)), 1 / (1 - _waiting())))


def _waiting() -> float:
    try:
        line = PRESSURE.read_text().splitlines()[0]
    except OSError:  # A kernel without this file.
        return 0.0
    average = next(part for part in line.split() if part.startswith("avg10="))
    return min(0.99, float(average.removeprefix("avg10=")) / 100)


def assert_within(seconds: float, promised: float, niceness: int = 0) -> None:
    """Check a promise of time, which a busy machine cannot keep to the second.

    A process that stood still did so for no longer than any process waited for a processor lately. With
    `niceness`, it has a share of what others leave: each step is a quarter more time.
    """
    factor, waited_s = 1 + (overload() - 1) * 1.25**niceness, PERIOD_S * _waiting()
    assert seconds < promised * factor + waited_s, (
        f"{seconds:.1f} s instead of {promised:g} s, overload {factor:.1f}, {waited_s:.1f} s of waiting"
    )
