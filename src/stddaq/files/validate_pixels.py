"""Read the pixels of a raw file, block by block, and compare them with the checksums of their source.

HDF5 may crash over a damaged file or read it without end, so each block is read by a fork of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

import h5py
import numpy as np

from stddaq.errors import FileLayoutError
from stddaq.files.opening import damage_named, isolated, open_file
from stddaq.files.raw_pixels import RawPixels, read_images
from stddaq.files.raw_rows import RawRows, read_raw_file
from stddaq.wire.pixel_checksum import NO_CHECKSUM, pixel_checksum

# Pixels that one fork reads within its timeout, even from slow storage.
BLOCK_BYTES = 128 * 2**20


@dataclass(frozen=True, slots=True)
class BlockResult:
    """What reading some images shows. Ids are the bytes of uint64.

    Attributes:
        unreadable: ids of images that cannot be read; `reason`: why the first one is not.
        n_compared: images with a checksum, which were compared with it.
        differing: ids of those whose pixels are others; `where_differing`: in the file, or only in what HDF5
            reads from it.
    """

    unreadable: bytes = b""
    reason: str = ""
    n_compared: int = 0
    differing: bytes = b""
    where_differing: str = ""

    def __add__(self, other: Self) -> BlockResult:
        return BlockResult(
            self.unreadable + other.unreadable,
            self.reason or other.reason,
            self.n_compared + other.n_compared,
            self.differing + other.differing,
            self.where_differing or other.where_differing,
        )


def blocks(n_rows: int, image_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield the first row of each block, and the one after its last."""
    step = max(1, BLOCK_BYTES // max(1, image_bytes))
    return ((first, min(first + step, n_rows)) for first in range(0, n_rows, step))


def read_block(path: Path, first: int, end: int) -> BlockResult:
    """Read the images of rows `first` to `end` of a raw file in a fork. Raise `FileLayoutError`."""
    try:
        return isolated(partial(_read, path, first, end), path)
    except FileLayoutError as error:
        # HDF5 crashed, or did not finish.
        ids = isolated(partial(_ids_of, path, first, end), path)
        return BlockResult(ids, str(error))


def _ids_of(path: Path, first: int, end: int) -> bytes:
    return read_raw_file(path, allow_unclosed=True).image_ids[first:end].tobytes()


def _read(path: Path, first: int, end: int) -> BlockResult:
    raw = read_raw_file(path, allow_unclosed=True)
    pixels, rows = RawPixels(raw), np.arange(first, end)
    with damage_named(path):
        images = np.empty((end - first, *raw.image_shape), raw.dtype)

    def failure(of: np.ndarray) -> str:
        try:
            read_images(
                [pixels], np.zeros(len(of), np.int64), of, images, of - first, range(raw.image_shape[0])
            )
        except FileLayoutError as error:
            return str(error)
        return ""

    is_read, reason = np.ones(len(rows), bool), ""
    if failure(rows):
        failures = [failure(row) for row in rows[:, None]]
        is_read, reason = np.array([not text for text in failures]), next(filter(None, failures), "")
    unreadable = BlockResult(raw.image_ids[rows[~is_read]].tobytes(), reason)
    return unreadable + _compare(raw, first, images, is_read)


def _compare(raw: RawRows, first: int, images: np.ndarray, is_read: np.ndarray) -> BlockResult:
    """Compare `images`, read past HDF5 from row `first` on, and what HDF5 reads, with their checksums."""
    if "checksum" not in (raw.row_dtype.names or ()):
        return BlockResult()
    with open_file(raw.path, allow_unclosed=True) as opened, damage_named(raw.path):
        metadata, data = (opened.file[f"{raw.detector_name}/{name}"] for name in ("metadata", "data"))
        assert isinstance(metadata, h5py.Dataset)
        assert isinstance(data, h5py.Dataset)
        checksums = metadata.fields("checksum")[first : first + len(images)]
        compared = np.flatnonzero(is_read & (checksums != NO_CHECKSUM)).tolist()
        in_file = [k for k in compared if pixel_checksum(images[k]) != checksums[k]]
        # An image at a time, into memory that is there: there may be no room for a second block.
        for k in compared:
            data.read_direct(images, np.s_[first + k], np.s_[k])
        by_hdf5 = [k for k in compared if pixel_checksum(images[k]) != checksums[k]]
    differing = sorted({*in_file, *by_hdf5})
    where = "in the file" if in_file else "as HDF5 reads them" if by_hdf5 else ""
    return BlockResult(
        n_compared=len(compared),
        differing=raw.image_ids[[first + k for k in differing]].tobytes(),
        where_differing=where,
    )
