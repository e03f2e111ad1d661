"""HDF5 files that grow while other processes read them by SWMR: what raw and metadata files share."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
from h5py import h5s

from stddaq.files.file_format import FILE_FORMAT
from stddaq.files.hdf5_calls import hdf5_calls
from stddaq.new_file import NewFile

# Chunks start on pages, so that the kernel copies whole ones.
PAGE = 4096
CHUNK_ROWS = 4096


def open_swmr_file(new: NewFile) -> h5py.File:
    """Return an empty HDF5 file in a format with SWMR, with data aligned to pages. Raises `OSError`."""
    try:
        with hdf5_calls:
            return h5py.File(
                new.opened,
                "w",
                libver=FILE_FORMAT,
                # A viewer that opens the new file at once holds a lock, and some file systems have none.
                locking=False,
                alignment_threshold=16 * PAGE,
                alignment_interval=PAGE,
            )
    except OSError as error:
        reason = f"HDF5 cannot create the file: {error.strerror or error}"
        raise OSError(errno.EIO, reason, str(new.path)) from error


def close_swmr_file(file: h5py.File, path: Path) -> None:
    """Close a file whose datasets are closed. Raises `OSError`; closing cannot be tried again then."""
    try:
        with hdf5_calls:
            file.close()
    except OSError as error:
        reason = f"HDF5 cannot close the file: {error.strerror or error}"
        raise OSError(errno.EIO, reason, str(path)) from error


class GrowingRows:
    """Rows of a compound type, collected in memory and appended block by block (a scalar costs 60 us)."""

    def __init__(self, group: h5py.Group, name: str, dtype: np.dtype) -> None:
        """Create dataset `name` (0,) of `dtype` in `group`."""
        dataset = group.create_dataset(name, shape=(0,), maxshape=(None,), chunks=(CHUNK_ROWS,), dtype=dtype)
        self._id = dataset.id
        self._dtype = dtype
        # h5py would make it for each block, member by member: a third of the cost of a flush.
        self._type = self._id.get_type()
        self.n_rows = 0

    def append(self, rows: Sequence[tuple[int, ...]]) -> None:
        """Append `rows` and flush them, so that other processes can read them."""
        n_rows = self.n_rows + len(rows)
        # h5py needs the values in an array of the very type, or it converts row by row.
        values = np.array(rows, self._dtype)
        with hdf5_calls:
            self._id.set_extent((n_rows,))
            target = self._id.get_space()
            target.select_hyperslab((self.n_rows,), (len(rows),))
            self._id.write(h5s.create_simple((len(rows),)), target, values, self._type)
            self._id.flush()
        self.n_rows = n_rows

    def cut(self) -> None:
        """Remove rows that a failed `append` has left."""
        with hdf5_calls:
            self._id.set_extent((self.n_rows,))

    def close(self) -> None:
        """Close the dataset: HDF5 closes a file only after its last open object."""
        del self._id
