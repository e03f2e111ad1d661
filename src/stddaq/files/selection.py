"""Which images of a run are meant: by position, id or number of parts, checked, with errors that say what."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from stddaq.text import mismatch, shown

_LARGEST_ID = 2**64 - 1


def integer(where: str, value: Any, least: int, most: int | None = None) -> int:
    """Return an integer from `least` to `most`. Raises `TypeError` for others than integers, `ValueError`."""
    try:
        found = _index(value)
    except TypeError:
        raise TypeError(mismatch(where, "an integer", shown(value))) from None
    if found < least or (most is not None and found > most):
        expected = f"at least {least}" if most is None else f"{least} to {most}"
        raise ValueError(mismatch(where, expected, str(found)))
    return found


def positions_of(where: str, key: Any, n: int) -> tuple[np.ndarray, bool]:
    """Return the positions (m,) int64 that `key` selects of `n` images, and whether it is one integer.

    `key` is a slice, integers, which count from the end if they are negative, or booleans (n,). Raises
    `IndexError`.
    """
    expected = f"integers, slices or {n} booleans"
    try:
        if isinstance(key, slice):
            return np.arange(*key.indices(n)), False
        values = np.asarray(key)
    except (TypeError, ValueError) as error:  # A slice of other things, or lists of several lengths.
        raise IndexError(mismatch(where, expected, str(key))) from error
    if values.dtype == bool and values.shape == (n,):
        return np.flatnonzero(values), False
    if values.shape == (0,):
        return np.empty(0, np.int64), False
    if values.dtype.kind not in "iu" or values.ndim > 1:
        raise IndexError(mismatch(where, expected, f"{values.dtype} {values.shape}"))
    outside = (values < -n) | (values >= n)
    if outside.any():
        found = int(np.atleast_1d(values)[np.atleast_1d(outside)][0])
        raise IndexError(
            mismatch(where, f"{-n} to {n - 1}" if n else "none, as there are no images", str(found))
        )
    # Not of unsigned integers, with which a negative number would become a float.
    positions = np.atleast_1d(values).astype(np.int64)
    return np.where(positions < 0, positions + n, positions), values.ndim == 0


def among_ids(where: str, ids: Any, present: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Return which of the ids `present` (n,) uint64 are among `ids`, (n,) bool, and the absent ids.

    Raises `IndexError` for `ids` that are no integers: none is rounded.
    """
    values = _integers(where, ids)
    possible = (values >= 0) & (values <= _LARGEST_ID)
    sought = values[possible].astype(np.uint64)
    absent = {*values[~possible].tolist(), *sought[~np.isin(sought, present)].tolist()}
    return np.isin(present, sought), sorted(absent)


def _integers(where: str, ids: Any) -> np.ndarray:
    """Return integers of any size (m,); those of a list as objects, as numpy makes floats of large ones."""
    if hasattr(ids, "__array__"):
        values = np.asarray(ids)
        if values.ndim == 1 and (values.dtype.kind in "iu" or not len(values)):
            return values
        raise IndexError(mismatch(where, "integers", f"{values.dtype} {values.shape}"))
    try:
        given = list(ids)
    except TypeError:
        raise IndexError(mismatch(where, "several integers", shown(ids))) from None
    try:
        return np.array([_index(one) for one in given], object)
    except TypeError:
        raise IndexError(mismatch(where, "integers", shown(given))) from None


def _index(value: Any) -> int:
    """Return an integer of any library. Raises `TypeError`, also for booleans: a mask is no list of ids."""
    if isinstance(value, bool):
        raise TypeError
    return operator.index(value)
