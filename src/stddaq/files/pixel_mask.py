"""The pixel mask of a detector: the gaps between its modules, and a file of numpy or HDF5.

Its bits are those of NeXus: 0 gap, 1 dead, 2 and 3 responding too little or too much, 4 noisy, 8 set by a
user, 31 virtual.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np
from h5py import h5d, h5p, h5s, h5t  # pyright: ignore[reportAttributeAccessIssue]

from stddaq.errors import ConfigError, FileLayoutError
from stddaq.files.opening import check_is_file, examine
from stddaq.text import mismatch, os_error_text, shown

if TYPE_CHECKING:
    from stddaq.run_metadata import Detector

GAP, DEAD, BY_USER = np.uint32(1), np.uint32(1 << 1), np.uint32(1 << 8)
# A mask of this size is sparse in the file: that of an Eiger 9M has 40 MB, which take 60 ms. HDF5 may store a
# smaller one where it has stored something else before.
SPARSE_BYTES = 2**20


def write_pixel_mask(
    group: h5py.Group, name: str, detector: Detector, image_shape: tuple[int, int]
) -> h5py.Dataset | None:
    """Write the mask (height, width) uint32 of a detector to a new file; None if it has no gaps and no file.

    Raise `FileLayoutError` for the file, `ConfigError` for gaps that are not in the image.
    """
    gaps = _gaps(detector, image_shape)
    if detector.mask_file is None and not gaps:
        return None
    if detector.mask_file is None and 4 * math.prod(image_shape) >= SPARSE_BYTES:
        return _write_gaps(group, name, gaps, image_shape)
    if detector.mask_file is None:
        mask = np.zeros(image_shape, np.uint32)
    else:
        mask = read_pixel_mask(detector.mask_file, image_shape)
    for gap in gaps:
        mask[gap] |= GAP
    stored = h5d.create(group.id, name.encode(), h5t.NATIVE_UINT32, h5s.create_simple(image_shape))
    stored.write(h5s.ALL, h5s.ALL, mask)
    return h5py.Dataset(stored)


def _gaps(detector: Detector, image_shape: tuple[int, int]) -> list[tuple[slice, slice]]:
    """Return the lines and columns of each gap. Raise `ConfigError`."""
    height, width = image_shape
    found: list[tuple[slice, slice]] = []
    for gap in detector.gaps or ():
        x0, y0, x1, y1 = gap
        if not (x0 <= x1 < width and y0 <= y1 < height):
            expected = f"corners x0 <= x1 < {width}, y0 <= y1 < {height}"
            raise ConfigError(mismatch("detector.gaps", expected, shown(gap)))
        found.append((slice(y0, y1 + 1), slice(x0, x1 + 1)))
    return found


def _write_gaps(
    group: h5py.Group, name: str, gaps: Sequence[tuple[slice, slice]], image_shape: tuple[int, int]
) -> h5py.Dataset:
    """Write a mask of gaps only. What is not written of a new file is zero, and takes no space."""
    creation = h5p.create(h5p.DATASET_CREATE)
    creation.set_alloc_time(h5d.ALLOC_TIME_EARLY)
    creation.set_fill_time(h5d.FILL_TIME_NEVER)
    space = h5s.create_simple(image_shape)
    stored = h5d.create(group.id, name.encode(), h5t.NATIVE_UINT32, space, creation)
    for lines, columns in gaps:
        values = np.full((lines.stop - lines.start, columns.stop - columns.start), GAP)
        space.select_hyperslab((lines.start, columns.start), values.shape)
        stored.write(h5s.create_simple(values.shape), space, values)
    return h5py.Dataset(stored)


def read_pixel_mask(name: str, image_shape: tuple[int, int]) -> np.ndarray:
    """Return the mask (height, width) uint32 of `FILE.npy` or `FILE.h5:/dataset`. Raise `FileLayoutError`.

    Pixels that a user has masked are also marked as dead: neggia ignores the bit of users.
    """
    path, colon, dataset = name.rpartition(":")
    mask = _of_hdf5(Path(path), dataset, image_shape) if colon else _of_numpy(Path(name), image_shape)
    return mask | np.where(mask & BY_USER, DEAD, np.uint32(0))


def _of_hdf5(path: Path, dataset: str, image_shape: tuple[int, int]) -> np.ndarray:
    with examine(path) as opened:
        stored = opened.file.get(dataset)
        if not isinstance(stored, h5py.Dataset):
            raise FileLayoutError(mismatch(f"{path}:{dataset}", "a dataset", "none"))
        # Another file, or any bytes of the disk, could be read through it.
        if stored.external is not None or stored.is_virtual or stored.file != opened.file:
            raise FileLayoutError(
                mismatch(f"{path}:{dataset}", "a dataset that is in this file", "a reference")
            )
        _check(f"{path}:{dataset}", stored.shape, stored.dtype, image_shape)
        return stored[()].astype(np.uint32)


def _of_numpy(path: Path, image_shape: tuple[int, int]) -> np.ndarray:
    try:
        check_is_file(path)
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise FileLayoutError(f"{path}: cannot be read: {os_error_text(error)}") from error
    except (ValueError, EOFError) as error:
        raise FileLayoutError(mismatch(str(path), "FILE.npy or FILE.h5:/dataset", "another file")) from error
    if not isinstance(stored, np.ndarray):  # An archive of several arrays.
        raise FileLayoutError(mismatch(str(path), "FILE.npy or FILE.h5:/dataset", "several arrays"))
    _check(str(path), stored.shape, stored.dtype, image_shape)
    return stored.astype(np.uint32)


def _check(where: str, shape: tuple[int, ...], dtype: np.dtype, image_shape: tuple[int, int]) -> None:
    # Before anything is read, so that memory is bounded.
    if shape != image_shape or dtype.kind not in "iub" or dtype.itemsize > np.dtype(np.uint32).itemsize:
        expected = f"a mask {image_shape} of integers up to 32 bits"
        raise FileLayoutError(mismatch(where, expected, f"{shape} {dtype}"))
