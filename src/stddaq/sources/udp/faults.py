"""Faults of a simulated detector's network: lost, repeated, exchanged, late, cut and misdirected packets."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class FaultRates:
    """Shares of all packets, 0 to 1, and modules that send nothing."""

    lost: float = 0.0
    repeated: float = 0.0
    swapped: float = 0.0
    late: float = 0.0
    wrong_size: float = 0.0
    wrong_port: float = 0.0
    dead_modules: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class SendingOrder:
    """The packets of one image, as numbers: `module * n_packets + packet`.

    Attributes:
        order: those that are sent as they are.
        late: those that are sent after the next image.
        cut, misdirected: those that lack their last byte, and those sent to the port of the next module.
    """

    order: np.ndarray
    late: list[int]
    cut: list[int]
    misdirected: list[int]


class Faults:
    """Chooses the packets that a fault meets, with a seed.

    Attributes:
        counts: packets by fault; `sent` are those that were sent as they are.
    """

    def __init__(self, rates: FaultRates, modules: list[int], n_packets: int, seed: int) -> None:
        self._n_packets = n_packets
        self._random = np.random.default_rng(seed)
        self.counts: Counter[str] = Counter()
        # All modules send at the same time: packet k of each one before packet k + 1.
        n_modules = len(modules)
        self._in_step = np.arange(n_modules * n_packets).reshape(n_modules, n_packets).T.reshape(-1)
        self._is_alive = np.repeat([module not in rates.dead_modules for module in modules], n_packets)
        # The faults of which a packet has one at most.
        self._kinds = ("lost", "late", "wrong_size", "wrong_port", "repeated", "swapped")
        self._thresholds = np.cumsum([getattr(rates, kind) for kind in self._kinds])
        self._has_faults = bool(self._thresholds[-1]) or not self._is_alive.all()

    def next_image(self) -> SendingOrder:
        """Return how the packets of the next image are sent."""
        if not self._has_faults:
            self.counts["sent"] += len(self._in_step)
            return SendingOrder(self._in_step, [], [], [])
        n = len(self._in_step)
        chosen = np.searchsorted(self._thresholds, self._random.random(n), side="right")
        chosen[~self._is_alive] = len(self._kinds) + 1
        by_kind = {kind: np.flatnonzero(chosen == i) for i, kind in enumerate(self._kinds)}
        self.counts.update({kind: len(found) for kind, found in by_kind.items()})
        self.counts["of_dead_modules"] += int(np.count_nonzero(~self._is_alive))
        is_sent = np.isin(
            chosen, [self._kinds.index("repeated"), self._kinds.index("swapped"), len(self._kinds)]
        )
        order = self._exchanged(by_kind["swapped"])
        order = order[is_sent[order]]
        order = np.repeat(order, 1 + np.isin(order, by_kind["repeated"]))
        self.counts["sent"] += len(order)
        late, cut, misdirected = (by_kind[kind].tolist() for kind in ("late", "wrong_size", "wrong_port"))
        return SendingOrder(order, late, cut, misdirected)

    def _exchanged(self, swapped: np.ndarray) -> np.ndarray:
        """Return all packets in step, but some exchanged with the next one of their module."""
        by_number = np.arange(len(self._in_step))
        for number in swapped[(swapped + 1) % self._n_packets > 0]:
            by_number[[number, number + 1]] = by_number[[number + 1, number]]
        return by_number[self._in_step]
