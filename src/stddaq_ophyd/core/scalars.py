"""Scalars of the images of a point, so that tables and plots have something to align with."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from numbers import Integral

import hdf5plugin  # noqa: F401  (registers the filters of compressed images)
import numpy as np

from stddaq.files.growing_run import Images, OpenFiles
from stddaq.files.open_raw_file import OpenRawFile, open_raw_file
from stddaq.text import mismatch
from stddaq_ophyd.core.errors import SettingError

# Rows and columns of a region: first row, last row (not included), first column, last column (not included).
Region = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class WantedScalars:
    """What to read of the images of a point: the mean of the last one, and the sums of regions by name."""

    mean: bool = False
    regions: Mapping[str, Region] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return self.mean or bool(self.regions)


@dataclass(slots=True)
class Scalars:
    """Scalars of the images of a point.

    Attributes:
        mean: of the pixels of the last image; None if it is not wanted.
        sums: of the pixels of each region, over all images.
    """

    mean: float | None
    sums: dict[str, float]


def scalars_of(images: Images, wanted: WantedScalars, opened: OpenFiles | None = None) -> Scalars:
    """Read what is needed of `images`: the last one for the mean, and the regions of each.

    `opened` are files that are open already. Raises `FileLayoutError`.
    """
    found = Scalars(None, dict.fromkeys(wanted.regions, 0.0))
    last = len(images) - 1
    needed = np.arange(len(images)) if wanted.regions else np.array([last])
    for i in np.unique(images.files[needed]).tolist():
        with ExitStack() as stack:
            file = (opened or {}).get(i) or stack.enter_context(open_raw_file(images.raw_files[i]))
            for image in needed[images.files[needed] == i].tolist():
                _add_scalars(found, file, int(images.rows[image]), wanted, with_mean=image == last)
    return found


def _add_scalars(
    found: Scalars, file: OpenRawFile, row: int, wanted: WantedScalars, *, with_mean: bool
) -> None:
    top = left = 0
    if wanted.mean and with_mean:
        pixels = file.pixels(row, slice(None), slice(None))
        found.mean = float(pixels.mean(dtype=np.float64))
    else:
        # One reading for all regions: a compressed image is decoded each time.
        tops, bottoms, lefts, rights = zip(*wanted.regions.values(), strict=True)
        top, left = min(tops), min(lefts)
        pixels = file.pixels(row, slice(top, max(bottoms)), slice(left, max(rights)))
    for name, (first, end, first_column, end_column) in wanted.regions.items():
        region = pixels[first - top : end - top, first_column - left : end_column - left]
        found.sums[name] += float(region.sum(dtype=np.float64))


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
