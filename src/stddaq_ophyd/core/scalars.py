"""Scalars of the images of a point, so that tables and plots have something to align with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  (registers the filters of compressed images)
import numpy as np

from stddaq.errors import FileLayoutError
from stddaq.files.growing_run import Images, OpenFiles
from stddaq.files.opening import damage_named, open_file
from stddaq.files.raw_rows import RawDatasets
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
        with _data_of(images.raw_files[i], (opened or {}).get(i)) as data:
            for image in needed[images.files[needed] == i]:
                row = int(images.rows[image])
                if wanted.mean and image == last:
                    found.mean = float(data[row].mean(dtype=np.float64))
                for name, (top, bottom, left, right) in wanted.regions.items():
                    found.sums[name] += float(data[row, top:bottom, left:right].sum(dtype=np.float64))
    return found


@contextmanager
def _data_of(raw: RawDatasets, opened: h5py.File | None) -> Iterator[h5py.Dataset]:
    with ExitStack() as stack:
        if opened is None:
            opened = stack.enter_context(open_file(raw.path, allow_unclosed=True, as_growing=True)).file
        stack.enter_context(damage_named(raw.path))
        data: Any = opened.get(f"{raw.group}/data")
        if not isinstance(data, h5py.Dataset):
            raise FileLayoutError(f"{raw.path}: has no images")
        yield data


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
