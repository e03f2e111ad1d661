"""Image ids as ranges: short for the ids of any number of images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# More ranges of one kind are counted, but not listed.
MAX_RANGES = 10_000


@dataclass(frozen=True, slots=True)
class IdRanges:
    """Some image ids.

    Attributes:
        number: of the ids.
        ranges: the first `MAX_RANGES` ranges (first, last) of consecutive ids, ascending.
    """

    number: int = 0
    ranges: tuple[tuple[int, int], ...] = ()

    def shown(self, n_ranges: int) -> str:
        """Return the first ranges as text: `3, 7-9, ...`."""
        texts = [str(first) if first == last else f"{first}-{last}" for first, last in self.ranges[:n_ranges]]
        return ", ".join(texts) + (", ..." if len(self.ranges) > n_ranges else "")


NO_IDS = IdRanges()


def id_ranges(ids: np.ndarray) -> IdRanges:
    """Return ids (n,) uint64, in any order, as ranges. An id that occurs twice counts twice."""
    if not len(ids):
        return NO_IDS
    found = np.unique(ids)
    before = np.flatnonzero(np.diff(found) > 1)
    firsts = found[np.concatenate([[0], before + 1])][:MAX_RANGES]
    lasts = found[np.concatenate([before, [len(found) - 1]])][:MAX_RANGES]
    return IdRanges(len(ids), tuple(zip(firsts.tolist(), lasts.tolist(), strict=True)))


def gaps(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return where ids (n,) of a run in order skip some, as (ids, before (m,), n (m,)).

    After the returned ids at the positions `before`, `n` ids do not exist. Where `ids` step back they
    restart, unless no id occurs twice: then images were late, and the returned ids are sorted.
    """
    in_order = np.sort(ids)
    if (in_order[1:] == in_order[:-1]).any():
        in_order = ids
    # At a step back the distance wraps around.
    distances = in_order[1:] - in_order[:-1]
    before = np.flatnonzero((in_order[1:] > in_order[:-1]) & (distances > 1))
    return in_order, before, distances[before] - np.uint64(1)


def skipped_ids(ids: np.ndarray) -> IdRanges:
    """Return the ids of a run that do not exist, as `gaps` finds them in its ids (n,) in order."""
    in_order, before, numbers = gaps(ids)
    after = in_order[before[:MAX_RANGES]].tolist()
    ranges = ((last + 1, last + n) for last, n in zip(after, numbers[:MAX_RANGES].tolist(), strict=True))
    return IdRanges(sum(numbers.tolist()), tuple(ranges))
