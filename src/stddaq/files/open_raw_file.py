"""A raw file while it is open: the ids of its rows, and the pixels of single images.

The points of a plan wait for both, so that h5py's low-level interface reads them. HDF5's cache of chunks
would read a whole chunk, of up to some hundred images or 4096 rows, for one of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import h5py
import numpy as np
from h5py import h5d, h5p, h5s, h5t  # pyright: ignore[reportAttributeAccessIssue]

from stddaq.errors import FileLayoutError
from stddaq.files.opening import damage_named, open_file
from stddaq.files.raw_rows import RawDatasets

_ID = np.dtype([("image_id", np.uint64)])
_ID_IN_FILE = h5t.py_create(_ID)
_UNCACHED = h5p.create(h5p.DATASET_ACCESS)
_UNCACHED.set_chunk_cache(1, 0, 0.0)


class OpenRawFile:
    """The datasets of an open raw file. Its methods raise `FileLayoutError` for a damaged one."""

    def __init__(self, raw: RawDatasets, file: h5py.File) -> None:
        """`file` is closed by the caller. Raises `FileLayoutError`."""
        self._raw = raw
        with damage_named(raw.path):
            # metadata first: in a growing file `data` is ahead of it, and its length is that of its opening.
            self._metadata, self._data = (
                h5d.open(file.id, f"{raw.group}/{name}".encode(), _UNCACHED) for name in ("metadata", "data")
            )

    def ids(self, first: int, end: int) -> np.ndarray:
        """Return the image ids (n,) uint64 of the visible rows from `first` to `end` (not included)."""
        with damage_named(self._raw.path):
            rows = self._metadata.get_space()
            n_rows, n_images = rows.shape[0], self._data.shape[0]
            if n_images < n_rows:
                raise FileLayoutError(f"{self._raw.path}: is short: {n_images} images, {n_rows} rows")
            n = max(0, min(end, n_rows) - first)
            found = np.empty(n, _ID)
            if n:
                rows.select_hyperslab((first,), (n,))
                self._metadata.read(h5s.create_simple((n,)), rows, found, _ID_IN_FILE)
        return found["image_id"]

    def pixels(self, row: int, lines: slice, columns: slice) -> np.ndarray:
        """Return a part of the image in `row`, without what is outside of the image."""
        height, width = self._raw.image_shape
        (top, bottom, _), (left, right, _) = lines.indices(height), columns.indices(width)
        found = np.empty((max(0, bottom - top), max(0, right - left)), self._raw.dtype)
        if found.size:
            with damage_named(self._raw.path):
                image = self._data.get_space()
                image.select_hyperslab((row, top, left), (1, *found.shape))
                self._data.read(h5s.create_simple(found.shape), image, found)
        return found


@contextmanager
def open_raw_file(raw: RawDatasets) -> Iterator[OpenRawFile]:
    """Open a raw file that may still grow. Raises `FileLayoutError`."""
    with open_file(raw.path, allow_unclosed=True, as_growing=True) as opened:
        yield OpenRawFile(raw, opened.file)
