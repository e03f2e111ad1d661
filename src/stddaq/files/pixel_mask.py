"""The pixel mask of a detector: the gaps between its modules, and a file of numpy or HDF5.

Its bits are those of NeXus: 0 gap, 1 dead, 2 and 3 responding too little or too much, 4 noisy, 8 set by a
user, 31 virtual.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from stddaq.errors import ConfigError, FileLayoutError
from stddaq.files.opening import check_is_file, examine
from stddaq.run_metadata import Detector
from stddaq.text import mismatch, os_error_text, shown

GAP, DEAD, BY_USER = np.uint32(1), np.uint32(1 << 1), np.uint32(1 << 8)


def pixel_mask(detector: Detector, image_shape: tuple[int, int]) -> np.ndarray | None:
    """Return the mask (height, width) uint32 of a detector; None if it has neither gaps nor a file.

    Raise `FileLayoutError` for the file, `ConfigError` for gaps that are not in the image.
    """
    if detector.mask_file is None and not detector.gaps:
        return None
    if detector.mask_file is None:
        mask = np.zeros(image_shape, np.uint32)
    else:
        mask = read_pixel_mask(detector.mask_file, image_shape)
    height, width = image_shape
    for gap in detector.gaps or ():
        x0, y0, x1, y1 = gap
        if not (x0 <= x1 < width and y0 <= y1 < height):
            expected = f"corners x0 <= x1 < {width}, y0 <= y1 < {height}"
            raise ConfigError(mismatch("detector.gaps", expected, shown(gap)))
        mask[y0 : y1 + 1, x0 : x1 + 1] |= GAP
    return mask


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
