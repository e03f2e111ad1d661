"""Rates over time: of the last hour by the second, and of the last day by the minute."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from stddaq.daemon.log import logger

N_SECONDS, N_MINUTES = 3600, 1440
# Twice those of 16 modules and 14 writers; each takes 20 kB.
MAX_SERIES = 1500
_PER_MINUTE = 60


class _Ring:
    """The last values of all series, one row for each time."""

    def __init__(self, length: int) -> None:
        self._times = np.full(length, np.nan)
        self._values: dict[str, np.ndarray] = {}
        self._n, self._length, self._has_warned = 0, length, False

    def add(self, now: float, rates: Mapping[str, float]) -> None:
        at = self._n % self._length
        self._times[at] = now
        for values in self._values.values():
            values[at] = np.nan
        for name, rate in rates.items():
            if name not in self._values:
                if len(self._values) >= MAX_SERIES:
                    self._warn()
                    continue
                self._values[name] = np.full(self._length, np.nan, np.float32)
            self._values[name][at] = rate
        self._n += 1
        if at == 0:  # Once a round, so that services that have ended do not keep their memory.
            self._values = {n: v for n, v in self._values.items() if not np.isnan(v).all()}

    def _warn(self) -> None:
        if not self._has_warned:
            self._has_warned = True
            logger.warning("rates over time: more than %d counters; the others are not kept", MAX_SERIES)

    def since(self, since: float, wanted: Callable[[str], bool]) -> dict[str, Any]:
        order = np.arange(max(0, self._n - self._length), self._n) % self._length
        order = order[self._times[order] > since]
        series = {
            name: [None if np.isnan(value) else float(f"{value:.5g}") for value in values[order]]
            for name, values in self._values.items()
            if wanted(name) and np.any(values[order] > 0)
        }
        return {"t": [round(float(t), 3) for t in self._times[order]], "series": series}

    def mean_of_last(self, n: int) -> dict[str, float]:
        order = np.arange(max(0, self._n - n), self._n) % self._length
        means = {}
        for name, values in self._values.items():
            known = values[order][~np.isnan(values[order])]
            if len(known):
                means[name] = float(known.mean())
        return means


class History:
    """Rates by series, `name{labels}`. Any thread may call it; times are seconds since 1970."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._seconds, self._minutes, self._n = _Ring(N_SECONDS), _Ring(N_MINUTES), 0

    def add(self, rates: Mapping[str, float]) -> None:
        """Note the rates now; call it once a second."""
        with self._lock:
            now = self._clock()
            self._seconds.add(now, rates)
            self._n += 1
            if self._n % _PER_MINUTE == 0:
                self._minutes.add(now, self._seconds.mean_of_last(_PER_MINUTE))

    def since(self, since: float, metrics: Iterable[str], *, by_minute: bool) -> dict[str, Any]:
        """Return `t` and `series` of these metrics, or of all if there are none.

        Series that were 0 all the time are left out.
        """
        names = frozenset(metrics)
        with self._lock:
            ring = self._minutes if by_minute else self._seconds
            return ring.since(since, lambda name: not names or name.partition("{")[0] in names)
