"""Read a run as one array in the order of its images, from its master file or its raw files.

Unlike a plain open of the master file, this raises an error for a raw file that is missing or short.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

import h5py
import hdf5plugin  # noqa: F401  (registers the filters of compressed images)
import numpy as np

from stddaq.errors import FileLayoutError
from stddaq.files.names import find_run
from stddaq.files.nexus import DATA, IMAGE_ID, RAW_FILES
from stddaq.files.opening import damage_named, examine, open_file
from stddaq.files.run import RecordedRun, read_run
from stddaq.files.sources import check_run_id, run_ids_of
from stddaq.files.virtual import source_files
from stddaq.text import mismatch


class RunReader(Protocol):
    """A run open for reading.

    Attributes:
        image_ids: (n,) uint64, in the order of the images.
        status: (n,) uint64, 1 is good.
        image_shape: (height, width) in pixels.
        dtype: type of a pixel.
    """

    image_ids: np.ndarray
    status: np.ndarray
    image_shape: tuple[int, int]
    dtype: np.dtype

    @property
    def n_images(self) -> int:
        """Return the number of images."""
        ...

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return images `start` to `stop` (not included) as (stop - start, height, width) of `dtype`.

        Raises `IndexError` outside 0 to `n_images`.
        """
        ...


@contextmanager
def open_run(path: Path) -> Iterator[RunReader]:
    """Open the run of a master file, or, without one, of a directory (prefix "file") or any raw file.

    Raises `FileLayoutError` that names the file which is missing, short, damaged or not closed.
    """
    if path.is_file() and is_master_file(path):
        with open_file(path) as opened:
            run, images = _run_behind(path, opened.file)
            yield _MasterReader(path, run, images)
        return
    run = read_run(find_run(path).raw)
    with ExitStack() as stack:
        datasets: list[h5py.Dataset] = []
        for raw in run.raw_files:
            data = stack.enter_context(open_file(raw.path)).file[f"{raw.detector_name}/data"]
            assert isinstance(data, h5py.Dataset)
            datasets.append(data)
        yield _RawReader(run, datasets)


def is_master_file(path: Path) -> bool:
    """Return whether the HDF5 file at `path` shows a run by a virtual dataset. Raises `FileLayoutError`."""
    with examine(path, allow_unclosed=True) as opened:
        images = opened.file.get(DATA)
        return isinstance(images, h5py.Dataset) and images.is_virtual and IMAGE_ID in opened.file


def sources_of_master(path: Path, images: h5py.Dataset) -> list[Path]:
    """Return the raw files with images that a master file shows, even those that do not exist."""
    return [path.parent / name for name in source_files(images)]


def _run_behind(path: Path, master: h5py.File) -> tuple[RecordedRun, h5py.Dataset]:
    """Return the checked run that the master file shows, and the virtual dataset."""
    with damage_named(path):
        images, image_ids, names = (master.get(name) for name in (DATA, IMAGE_ID, RAW_FILES))
        assert isinstance(images, h5py.Dataset)
        assert isinstance(image_ids, h5py.Dataset)
        sources = sources_of_master(path, images)
        if isinstance(names, h5py.Dataset):
            # Files without images are not named by the virtual dataset.
            sources = [path.parent / str(name) for name in np.ravel(names.asstr()[()])]
        shown = image_ids[()]
    run = read_run(sources)
    for raw in run.raw_files:
        check_run_id(raw.path, raw.origin.run_id, run_ids_of(master), path)
    if not np.array_equal(run.order.image_ids, shown):
        raise FileLayoutError(f"{path}: does not show the images that are in the raw files now")
    return run, images


class _Reader:
    def __init__(self, run: RecordedRun) -> None:
        self.image_ids = run.order.image_ids
        self.status = run.in_order([raw.status for raw in run.raw_files])
        self.image_shape = run.image_shape
        self.dtype = run.dtype
        self._positions = run.order.positions
        self._raw_files = run.raw_files

    @property
    def n_images(self) -> int:
        return len(self.image_ids)

    def _check(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= self.n_images:
            raise IndexError(mismatch("images", f"0 to {self.n_images}", f"{start} to {stop}"))


class _MasterReader(_Reader):
    def __init__(self, path: Path, run: RecordedRun, images: h5py.Dataset) -> None:
        super().__init__(run)
        self._path = path
        self._images = images

    def read(self, start: int, stop: int) -> np.ndarray:
        self._check(start, stop)
        with damage_named(self._path):
            return self._images[start:stop]


class _RawReader(_Reader):
    def __init__(self, run: RecordedRun, datasets: list[h5py.Dataset]) -> None:
        super().__init__(run)
        self._datasets = datasets

    def read(self, start: int, stop: int) -> np.ndarray:
        self._check(start, stop)
        images = np.empty((stop - start, *self.image_shape), self.dtype)
        sources = zip(self._raw_files, self._positions, self._datasets, strict=True)
        for raw, positions, dataset in sources:
            first, last = np.searchsorted(positions, (start, stop))
            if last > first:
                with damage_named(raw.path):
                    images[positions[first:last] - start] = dataset[first:last]
        return images
