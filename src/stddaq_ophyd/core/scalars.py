"""Scalars of the images of a point, so that tables and plots have something to align with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  (registers the filters of compressed images)
import numpy as np

from stddaq.errors import FileLayoutError
from stddaq.files.growing_run import Images
from stddaq.files.opening import damage_named, open_file
from stddaq.text import mismatch
from stddaq_ophyd.core.errors import SettingError

# Rows and columns of a region: first row, last row (not included), first column, last column (not included).
Region = tuple[int, int, int, int]


@dataclass(slots=True)
class Scalars:
    """Scalars of the images of a point.

    Attributes:
        mean: of the pixels of the last image; None if it is not wanted.
        sums: of the pixels of each region, over all images.
    """

    mean: float | None
    sums: dict[str, float]


def scalars_of(images: Images, regions: Mapping[str, Region], *, mean: bool) -> Scalars:
    """Read what is needed of `images`: the last one for the mean, and the regions of each.

    Raises `FileLayoutError`.
    """
    found = Scalars(None, dict.fromkeys(regions, 0.0))
    last = len(images) - 1
    wanted = np.arange(len(images)) if regions else np.array([last])
    for i in np.unique(images.files[wanted]):
        raw = images.raw_files[i]
        with open_file(raw.path, allow_unclosed=True, as_growing=True) as opened, damage_named(raw.path):
            data: Any = opened.file.get(f"{raw.group}/data")
            if not isinstance(data, h5py.Dataset):
                raise FileLayoutError(f"{raw.path}: has no images")
            for image in wanted[images.files[wanted] == i]:
                row = int(images.rows[image])
                if mean and image == last:
                    found.mean = float(data[row].mean(dtype=np.float64))
                for name, (top, bottom, left, right) in regions.items():
                    found.sums[name] += float(data[row, top:bottom, left:right].sum(dtype=np.float64))
    return found


def checked_region(device: str, name: str, region: Region) -> Region:
    """Return a region. Raises `SettingError` when it is none."""
    numbers = tuple(region)
    if len(numbers) != 4 or not all(isinstance(number, Integral) and number >= 0 for number in numbers):
        raise SettingError(
            mismatch(f"{device}: region {name}", "four whole numbers: rows, columns", repr(region))
        )
    top, bottom, left, right = map(int, numbers)
    if not (name.isidentifier() and top < bottom and left < right):
        raise SettingError(
            mismatch(f"{device}: region {name}", "a name of letters, and rows and columns", repr(region))
        )
    return top, bottom, left, right
