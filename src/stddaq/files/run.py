"""The run that a set of files holds: whether they belong together, and the order of their images.

The master file and all readers of runs go through `read_run`, because HDF5 itself silently shows fill values
where a file is missing or short.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from stddaq.errors import FileLayoutError
from stddaq.files.image_order import ImageOrder, order_images, rows_of_images
from stddaq.files.names import in_writer_order, missing_between, sibling
from stddaq.files.raw_rows import ImageRows, RawRows, read_metadata_file, read_raw_file
from stddaq.text import mismatch


@dataclass(frozen=True, slots=True)
class RecordedRun:
    """The files of one run, checked to be complete and consistent.

    Attributes:
        raw_files: of writer 0, 1, ...
        metadata_rows: (n,) int64, for each image its row in `metadata_file`; None without one.
    """

    raw_files: tuple[RawRows, ...]
    metadata_file: ImageRows | None
    metadata_rows: np.ndarray | None
    order: ImageOrder

    @property
    def run_id(self) -> str | None:
        """Return the id of the run; None for files of C++ writers."""
        return next((raw.origin.run_id for raw in self.raw_files if raw.origin.run_id), None)

    @property
    def detector_name(self) -> str:
        """Return the name of the detector."""
        return self.raw_files[0].detector_name

    @property
    def image_shape(self) -> tuple[int, int]:
        """Return (height, width) in pixels."""
        return self.raw_files[0].image_shape

    @property
    def dtype(self) -> np.dtype:
        """Return the type of a pixel."""
        return self.raw_files[0].dtype

    def in_order(self, columns: Sequence[np.ndarray]) -> np.ndarray:
        """Merge one array per raw file (rows,) into one array (n,) in the order of the images."""
        result = np.empty(self.order.n_images, columns[0].dtype)
        for column, positions in zip(columns, self.order.positions, strict=True):
            result[positions] = column
        return result


def read_run(raw_files: Sequence[Path], metadata_file: Path | None = None) -> RecordedRun:
    """Read the rows of all files of a run, given in any order.

    Raises `FileLayoutError`, which names the file that is missing, short, damaged, not closed, or not part of
    the run.
    """
    files = rows_of_files(raw_files)
    if metadata_file is None:
        order = order_images(files)
        _check_last_writers(files, order)
        return RecordedRun(tuple(files), None, None, order)
    table = read_metadata_file(metadata_file)
    _check_same([*files, table], _IDENTITY)
    files = [_with_epochs_of(table, file, writer, len(files)) for writer, file in enumerate(files)]
    order = order_images(files)
    return RecordedRun(tuple(files), table, rows_of_images(order, table), order)


def run_of_rows(rows: RawRows) -> RecordedRun:
    """Return a run all of whose images are in one file."""
    return RecordedRun((rows,), None, None, order_images([rows]))


def rows_of_files(raw_files: Sequence[Path], allow_unclosed: bool = False) -> list[RawRows]:
    """Return the rows of the raw files of a run, given in any order, by writer. Raises `FileLayoutError`."""
    if not raw_files:
        raise FileLayoutError(mismatch("raw files", "at least one", "none"))
    paths = in_writer_order(raw_files)
    absent = missing_between(paths)
    if absent is not None:
        raise FileLayoutError(f"{absent}: is missing, although {paths[-1].name} exists")
    files = [read_raw_file(paths[0], allow_unclosed)]
    # The kernel clears one large piece of memory faster than many small ones.
    space = np.empty((len(paths) - 1, files[0].n_rows), np.uint64)
    files += [read_raw_file(path, allow_unclosed, space[i]) for i, path in enumerate(paths[1:])]
    _check_same(files, (*_IDENTITY, *_LAYOUT))
    return _in_place(files)


Property = tuple[str, Callable[[ImageRows], object]]
_IDENTITY: tuple[Property, ...] = (
    ("detector_name", lambda rows: rows.detector_name),
    ("run_id", lambda rows: rows.origin.run_id),
)
_LAYOUT: tuple[Property, ...] = (
    ("number_of_writers", lambda rows: rows.origin.number_of_writers),
    ("image_division", lambda rows: rows.origin.image_division),
    ("source", lambda rows: rows.origin.source),
    ("type of the metadata rows", lambda rows: rows.row_dtype),
    ("image shape", lambda rows: rows.image_shape if isinstance(rows, RawRows) else None),
    ("pixel type", lambda rows: rows.dtype if isinstance(rows, RawRows) else None),
)


def _check_same(files: Sequence[ImageRows], properties: Sequence[Property]) -> None:
    """Check that the files agree in each property that they have; C++ files lack some."""
    for name, of in properties:
        with_value = [file for file in files if of(file) is not None]
        for file in with_value[1:]:
            if of(file) != of(with_value[0]):
                raise FileLayoutError(
                    f"{file.path}: is not of the same run as {with_value[0].path}: "
                    + mismatch(name, str(of(with_value[0])), str(of(file)))
                )


def _in_place(files: list[RawRows]) -> list[RawRows]:
    """Return the files in the order of their writers, or of their names; all must be present."""
    n_writers = _number_of_writers(files)
    if n_writers is None:
        return files
    by_writer: dict[int, RawRows] = {}
    for place, file in enumerate(files):
        writer = place if file.origin.writer is None else file.origin.writer
        if writer in by_writer:
            raise FileLayoutError(
                f"{file.path}: belongs to writer {writer}, as does {by_writer[writer].path}"
            )
        if writer >= n_writers:
            raise FileLayoutError(
                f"{file.path}: belongs to writer {writer}, expected writers 0 to {n_writers - 1}"
            )
        by_writer[writer] = file
    for writer in range(n_writers):
        if writer not in by_writer:
            absent = sibling([file.path for file in files], writer)
            raise FileLayoutError(f"{absent}: is missing, the run has {n_writers} writers")
    return [by_writer[writer] for writer in range(n_writers)]


def _number_of_writers(files: Sequence[RawRows]) -> int | None:
    numbers = (file.origin.number_of_writers for file in files)
    return next((number for number in numbers if number is not None), None)


def _with_epochs_of(table: ImageRows, file: RawRows, writer: int, n_writers: int) -> RawRows:
    """Return the file with the epochs of its rows from the metadata file, which lists all images in order.

    Nothing changes if the file has its own epochs, or does not hold the images of its writer from the first.
    """
    if file.epochs_known or not table.n_steps_back:
        return file
    mine = np.flatnonzero(table.image_ids % np.uint64(n_writers) == writer)[: file.n_rows]
    if not np.array_equal(table.image_ids[mine], file.image_ids):
        return file
    return replace(file, epochs=table.epochs[mine], epochs_known=True)


def _check_last_writers(files: Sequence[RawRows], order: ImageOrder) -> None:
    """Refuse files 0 to k of more writers, if no attribute gives the number of writers.

    If all ids in each file i are `i` modulo some larger number, the run had that many writers.
    """
    if len(files) < 2 or _number_of_writers(files) is not None or order.image_division == "image_id":
        return
    if any(file.n_rows < 2 for file in files):
        return
    n_writers = math.gcd(
        *(int(np.gcd.reduce(file.image_ids.astype(object) - i)) for i, file in enumerate(files))
    )
    if n_writers > len(files):
        absent = sibling([file.path for file in files], len(files))
        raise FileLayoutError(
            f"{absent}: is missing: the image ids in the {len(files)} files are those of writers "
            f"0 to {len(files) - 1} of {n_writers}; pass the metadata file of the run to decide it"
        )
