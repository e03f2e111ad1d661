"""The files of a run that is open for reading, and the order of its images, known from their metadata."""

from __future__ import annotations

import zlib
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5t  # pyright: ignore[reportAttributeAccessIssue]

from stddaq.errors import FileLayoutError
from stddaq.files.exported_file import read_exported_file
from stddaq.files.growing_run import settled
from stddaq.files.image_order import ImageOrder
from stddaq.files.names import find_run
from stddaq.files.nexus import (
    ACCOUNT,
    APPLICATION_METADATA,
    DATA,
    DETECTOR,
    IMAGE_ID,
    IMAGE_METADATA,
    RAW_FILES,
    object_of,
)
from stddaq.files.opening import examine
from stddaq.files.raw_pixels import RawPixels
from stddaq.files.row_tables import blocks_of
from stddaq.files.run import RecordedRun, read_run, rows_of_files, run_of_rows
from stddaq.files.sources import check_run_id, run_ids_of
from stddaq.files.virtual import source_files

# Id of the run, number of images, checksum of their ids.
Identity = tuple[str | None, int, int]


class _Images:
    """The images of a run in order. Their columns are merged when they are used: 10^6 images take 10 ms."""

    def __init__(self, run: RecordedRun) -> None:
        self._run, self.n = run, run.order.n_images

    @cached_property
    def ids(self) -> np.ndarray:
        return read_only(self._run.order.image_ids)

    @cached_property
    def status(self) -> np.ndarray:
        return read_only(self._run.in_order([raw.status for raw in self._run.raw_files]))

    @cached_property
    def places(self) -> np.ndarray:
        """Return (n,) int64: row * number of files + file."""
        files = self._run.raw_files
        return self._run.in_order(
            [np.arange(i, raw.n_rows * len(files), len(files)) for i, raw in enumerate(files)]
        )


class OpenedRun:
    """The files of a run, and their images in order; shared by all parts of a run."""

    def __init__(self, path: Path, prefix: str | None, growing: bool) -> None:
        self.path, self.prefix = path, prefix
        self._master = path if path.is_file() and is_master_file(path) else None
        exported = read_exported_file(path) if path.is_file() and not self._master else None
        self._exported = path if exported is not None else None
        if exported is not None:
            run, paths = run_of_rows(exported), [path]
        elif self._master:
            run = run_of_master(self._master)
            paths = [raw.path for raw in run.raw_files]
        else:
            paths = find_run(path, prefix).raw
            run = None if growing else read_run(paths)
        self._paths, self.growing = paths, growing and run is None
        self._images: _Images | None = None
        self.raw_files: list[RawPixels] = []
        if run is not None:
            self._take(run)
        else:
            self.refresh()

    def refresh(self) -> int:
        """Read the rows of growing files. Return the number of new images."""
        files = rows_of_files(self._paths, allow_unclosed=True)
        run_ids = [raw.rows.origin.run_id or "" for raw in self.raw_files[:1]]
        for file in files:
            check_run_id(file.path, file.origin.run_id, [one for one in run_ids if one], self.path)
        if any(file.unclosed for file in files):
            run = settled(files)
        else:
            run, self.growing = read_run(self._paths), False
        before = self._images
        self._take(run)
        if before is None:
            return self.n_images
        n = before.n
        if not np.array_equal(self.places[:n], before.places) or not np.array_equal(
            self.image_ids[:n], before.ids
        ):
            raise FileLayoutError(
                f"{self.path}: image ids stepped back while it was recorded, and the order of its images is "
                "known only now; open the run again"
            )
        return self.n_images - n

    @property
    def n_images(self) -> int:
        return self._ordered.n

    @property
    def image_ids(self) -> np.ndarray:
        return self._ordered.ids

    @property
    def status(self) -> np.ndarray:
        return self._ordered.status

    @property
    def places(self) -> np.ndarray:
        return self._ordered.places

    @property
    def _ordered(self) -> _Images:
        assert self._images is not None
        return self._images

    def _take(self, run: RecordedRun) -> None:
        self._images = _Images(run)
        if not self.raw_files:
            self.raw_files = [RawPixels(raw) for raw in run.raw_files]
        for pixels, raw in zip(self.raw_files, run.raw_files, strict=True):
            pixels.rows = raw

    @property
    def identity(self) -> Identity:
        return self.identity_of_first(self.n_images)

    def identity_of_first(self, n: int) -> Identity:
        ids = np.ascontiguousarray(self.image_ids[:n])
        return self.raw_files[0].rows.origin.run_id, len(ids), zlib.crc32(ids.data)

    @cached_property
    def account(self) -> dict[str, Any] | None:
        return self._stored_object(ACCOUNT)

    @cached_property
    def nexus(self) -> dict[str, Any] | None:
        return self._stored_object(APPLICATION_METADATA)

    def _stored_object(self, name: str) -> dict[str, Any] | None:
        master = self._existing_master()
        if master is None:
            return None
        with examine(master) as opened:
            return object_of(opened.file, name)

    def detector_rows(self) -> np.ndarray | None:
        if self._exported is not None:
            return self._exported_detector_rows(self._exported)
        path = self._metadata_file()
        if path is None:
            return None
        run = read_run(self._paths, path)
        table, rows = run.metadata_file, run.metadata_rows
        assert table is not None
        with examine(path) as opened:
            stored = opened.file[f"{table.detector_name}/metadata"]
            assert isinstance(stored, h5py.Dataset)
            return stored[()][rows]

    @staticmethod
    def _exported_detector_rows(path: Path) -> np.ndarray | None:
        with examine(path) as opened:
            stored = opened.file.get(f"{DETECTOR}/metadata")
            return stored[()] if isinstance(stored, h5py.Dataset) else None

    def _metadata_file(self) -> Path | None:
        if self._master is None:
            return find_run(self.path, self.prefix).metadata
        return files_of_master(self._master)[1]

    def _existing_master(self) -> Path | None:
        if self._master is not None or self._exported is not None:
            return self._master or self._exported
        path = find_run(self.path, self.prefix).master
        if not path.exists():
            return None
        run_of_master(path)
        return path


def read_only(values: np.ndarray) -> np.ndarray:
    """Return a view that refuses assignments: images are found by these values."""
    view = values.view()
    view.flags.writeable = False
    return view


def is_master_file(path: Path) -> bool:
    """Return whether the HDF5 file at `path` shows a run by a virtual dataset. Raises `FileLayoutError`."""
    with examine(path, allow_unclosed=True) as opened:
        images = opened.file.get(DATA)
        return isinstance(images, h5py.Dataset) and images.is_virtual and IMAGE_ID in opened.file


def sources_of_master(path: Path, images: h5py.Dataset) -> list[Path]:
    """Return the raw files with images that a master file shows, even those that do not exist.

    None of an exported file, which has the images itself.
    """
    if not images.is_virtual:
        return []
    return [path.parent / name for name in source_files(images)]


def files_of_master(path: Path) -> tuple[list[Path], Path | None]:
    """Return the raw files and the metadata file that a master file names. Raises `FileLayoutError`."""
    with examine(path) as opened:
        sources = _raw_files_in(path, opened.file)
        rows = opened.file.get(f"{DETECTOR}/metadata")
        if not isinstance(rows, h5py.Dataset) or not rows.is_virtual:
            return sources, None
        # The master file of a run without images names no metadata file.
        return sources, next((path.parent / name for name in source_files(rows)), None)


def _raw_files_in(path: Path, master: h5py.File) -> list[Path]:
    images, names = (master.get(name) for name in (DATA, RAW_FILES))
    assert isinstance(images, h5py.Dataset)
    if isinstance(names, h5py.Dataset):
        # Files without images are not named by the virtual dataset.
        return [path.parent / str(name) for name in np.ravel(names.asstr()[()])]
    return sources_of_master(path, images)


def run_of_master(path: Path) -> RecordedRun:
    """Return the run that the master file shows, checked. Raises `FileLayoutError`."""
    with examine(path) as opened:
        sources = _raw_files_in(path, opened.file)
        image_ids = opened.file.get(IMAGE_ID)
        assert isinstance(image_ids, h5py.Dataset)
        run, run_ids = read_run(sources), run_ids_of(opened.file)
        for raw in run.raw_files:
            check_run_id(raw.path, raw.origin.run_id, run_ids, path)
        if IMAGE_METADATA in opened.file:
            is_same = _are_ids_of(run.order, image_ids)
        else:  # Frames, also of ids that were skipped.
            shown_ids = image_ids[()]
            shown_ids = shown_ids[np.isin(shown_ids, run.order.image_ids)]
            is_same = np.array_equal(run.order.image_ids, shown_ids)
    if not is_same:
        raise FileLayoutError(f"{path}: does not show the images that are in the raw files now")
    return run


def _are_ids_of(order: ImageOrder, stored: h5py.Dataset) -> bool:
    """Compare in blocks, so that no memory is needed for all ids: 10^6 in a third of the time."""
    if stored.shape != (order.n_images,) or stored.dtype != np.uint64:
        return np.array_equal(stored[()], order.image_ids)
    return all(
        np.array_equal(ids, order.ids_between(start, start + len(ids)))
        for start, ids in blocks_of(stored, h5t.NATIVE_UINT64)
    )
