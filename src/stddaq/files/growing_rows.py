"""A 1-D dataset of rows that grows while other processes read it by SWMR: per-image metadata."""

from __future__ import annotations

from collections.abc import Sequence

import h5py
import numpy as np
from h5py import h5s

CHUNK_ROWS = 4096


class GrowingRows:
    """Rows of a compound type, collected in memory and appended block by block (a scalar costs 60 us)."""

    def __init__(self, group: h5py.Group, name: str, dtype: np.dtype) -> None:
        """Create dataset `name` (0,) of `dtype` in `group`."""
        dataset = group.create_dataset(name, shape=(0,), maxshape=(None,), chunks=(CHUNK_ROWS,), dtype=dtype)
        self._id = dataset.id
        self._dtype = dtype
        self.n_rows = 0

    def append(self, rows: Sequence[tuple[int, ...]]) -> None:
        """Append `rows` and flush them: afterwards other processes can read them."""
        n_rows = self.n_rows + len(rows)
        self._id.set_extent((n_rows,))
        target = self._id.get_space()
        target.select_hyperslab((self.n_rows,), (len(rows),))
        # h5py needs the values in an array of the very type, or it converts row by row.
        self._id.write(h5s.create_simple((len(rows),)), target, np.array(rows, self._dtype))
        self._id.flush()
        self.n_rows = n_rows

    def cut(self) -> None:
        """Take back rows that an append which failed half-way has left."""
        self._id.set_extent((self.n_rows,))

    def close(self) -> None:
        """Let go of the dataset; HDF5 closes a file only with its last open object."""
        del self._id
