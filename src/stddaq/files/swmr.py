"""HDF5 files that grow while other processes read them by SWMR: what raw and metadata files share."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
from h5py import h5d, h5p, h5s, h5t  # pyright: ignore[reportAttributeAccessIssue]

from stddaq.errors import FileLayoutError
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
    """Rows of a compound type, written past HDF5 into chunks that it has allocated, as pixels are.

    HDF5's own write of a block takes as long as making it visible, and writes the whole chunk for each.
    """

    def __init__(self, group: h5py.Group, name: str, dtype: np.dtype) -> None:
        """Create dataset `name` (0,) of `dtype` in `group`."""
        creation = h5p.create(h5p.DATASET_CREATE)
        creation.set_chunk((CHUNK_ROWS,))
        creation.set_alloc_time(h5d.ALLOC_TIME_EARLY)
        creation.set_fill_time(h5d.FILL_TIME_NEVER)
        creation.set_obj_track_times(False)
        access = h5p.create(h5p.DATASET_ACCESS)
        access.set_chunk_cache(1, 0, 0.0)  # Nothing is read or written through this handle.
        space = h5s.create_simple((0,), (h5s.UNLIMITED,))
        stored = h5t.py_create(dtype, logical=True)
        self._id = h5d.create(group.id, name.encode(), stored, space, dcpl=creation, dapl=access)
        self._fd: int = group.file.id.get_vfd_handle()
        self._dtype = dtype
        # The chunk that the last rows are in, and its offset in the file.
        self._chunk, self._offset = -1, 0
        self.n_rows = 0

    def append(self, rows: Sequence[tuple[int, ...]]) -> None:
        """Append `rows` and flush them, so that other processes can read them. Raise `OSError`."""
        content = memoryview(np.array(rows, self._dtype).tobytes())
        n_rows = self.n_rows + len(rows)
        try:
            self._write_rows(content)
            with hdf5_calls:
                self._id.set_extent((n_rows,))
                self._id.flush()
        except BaseException:
            # Closing the file must not make rows visible that were not written.
            with contextlib.suppress(OSError, RuntimeError):
                self.cut()
            raise
        self.n_rows = n_rows

    def _write_rows(self, content: memoryview) -> None:
        """Write rows where they will be when the extent contains them."""
        size, row = self._dtype.itemsize, self.n_rows
        while content:
            chunk, place = divmod(row, CHUNK_ROWS)
            if chunk != self._chunk:
                self._chunk, self._offset = chunk, self._allocated(chunk)
            n_rows = min(len(content) // size, CHUNK_ROWS - place)
            self._write(content[: n_rows * size], self._offset + place * size)
            content, row = content[n_rows * size :], row + n_rows

    def _allocated(self, chunk: int) -> int:
        """Return the offset of `chunk` in the file, after HDF5 has allocated it, if necessary."""
        first = chunk * CHUNK_ROWS
        is_new = self._id.shape[0] <= first
        if is_new:
            with hdf5_calls:
                self._id.set_extent((first + 1,))
        offset = self._id.get_chunk_info_by_coord((first,)).byte_offset
        if offset is None:
            raise FileLayoutError("HDF5 allocated no space for rows of metadata")
        if is_new:
            # HDF5 refuses a file that ends within a chunk, as a killed writer would leave it. And a full disk
            # is noticed here, not row by row.
            self._write(memoryview(bytes(CHUNK_ROWS * self._dtype.itemsize)), offset)
        return offset

    def _write(self, content: memoryview, offset: int) -> None:
        # The first try may write less; only the second reports a full disk.
        while content:
            written = os.pwrite(self._fd, content, offset)
            content, offset = content[written:], offset + written

    def cut(self) -> None:
        """Remove rows that a failed `append` has left."""
        self._chunk = -1  # HDF5 releases a chunk that has no rows any more.
        with hdf5_calls:
            self._id.set_extent((self.n_rows,))

    def close(self) -> None:
        """Close the dataset: HDF5 closes a file only after its last open object."""
        del self._id
