"""Rows of the raw files of a run as images in order; only new rows of growing files are read.

Images are ordered by (epoch, image id). While files grow, the order is known only until the ids restart,
because the epochs are written when a file is closed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np

from stddaq.errors import FileLayoutError
from stddaq.files.image_order import order_images, order_of_rows
from stddaq.files.open_raw_file import OpenRawFile, open_raw_file
from stddaq.files.opening import damage_named, open_file
from stddaq.files.raw_rows import Origin, RawDatasets, RawRows, raw_group
from stddaq.files.run import RecordedRun

# By number of the file.
OpenFiles = Mapping[int, OpenRawFile]


@dataclass(frozen=True, slots=True)
class Images:
    """Images in order, by file and row.

    Attributes:
        raw_files: the files that `files` counts.
        files: (n,) int64, index of the file of each image.
        rows: (n,) int64, its row in that file.
        ids: (n,) uint64.
    """

    raw_files: tuple[RawDatasets, ...]
    files: np.ndarray
    rows: np.ndarray
    ids: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, part: slice) -> Images:
        return Images(self.raw_files, self.files[part], self.rows[part], self.ids[part])

    def after(self, others: Images) -> Images:
        """Return `others` followed by these images, of the same files."""
        return Images(
            self.raw_files,
            np.concatenate([others.files, self.files]),
            np.concatenate([others.rows, self.rows]),
            np.concatenate([others.ids, self.ids]),
        )


class GrowingFiles:
    """The raw files of a running run, opened for each read.

    HDF5 shows a handle that stays open, and every other one in the process, the state of its opening.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        """Raises `FileLayoutError`."""
        self.files = tuple(_datasets_of(path) for path in paths)

    @contextmanager
    def opened(self, first: Sequence[int], sent: Sequence[int]) -> Iterator[OpenFiles]:
        """Open the files that have rows from `first` on among the `sent` ones.

        Opening one takes 0.3 ms. Raises `FileLayoutError`.
        """
        with ExitStack() as stack:
            yield {
                i: stack.enter_context(open_raw_file(self.files[i]))
                for i, (row, n_sent) in enumerate(zip(first, sent, strict=True))
                if n_sent > row
            }

    def ids(
        self, first: Sequence[int], sent: Sequence[int], opened: OpenFiles | None = None
    ) -> list[np.ndarray]:
        """Return the image ids (n,) uint64 of the visible rows from `first` on, for each file.

        Rows beyond `sent` are left out, because images that another file has not received yet may come before
        them. `opened` are the files as `opened` returns them. Raises `FileLayoutError` when a file holds
        fewer images than rows.
        """
        if opened is None:
            with self.opened(first, sent) as found:
                return self.ids(first, sent, found)
        return [
            opened[i].ids(row, n_sent) if i in opened else np.empty(0, np.uint64)
            for i, (row, n_sent) in enumerate(zip(first, sent, strict=True))
        ]


def in_order(
    files: tuple[RawDatasets, ...], first: Sequence[int], ids: Sequence[np.ndarray]
) -> Images | None:
    """Return the images of the rows from `first` on of each file by id; None if ids restart among them."""
    if any(np.any(of_file[1:] <= of_file[:-1]) for of_file in ids):
        return None
    order = order_of_rows(ids)
    numbers = np.concatenate([np.full(len(of_file), i, np.int64) for i, of_file in enumerate(ids)])
    rows = np.concatenate(
        [row + np.arange(len(of_file), dtype=np.int64) for row, of_file in zip(first, ids, strict=True)]
    )
    return Images(files, numbers[order], rows[order], np.concatenate(ids)[order])


def n_settled(images: Images, first: Sequence[int], sent: Sequence[int]) -> int:
    """Return how many of `images`, in order, can have no other image between them.

    `sent` images went to each file. Those that are not visible yet come after the last visible one of the
    same file.
    """
    n = len(images)
    for i, (row, n_sent) in enumerate(zip(first, sent, strict=True)):
        mine = np.flatnonzero(images.files == i)
        if row + len(mine) < n_sent:
            n = min(n, int(mine[-1]) + 1 if len(mine) else 0)
    return n


def of_closed_run(run: RecordedRun, first: Sequence[int] = ()) -> Images:
    """Return the images of a run with closed files, without those before row `first` of each file."""
    files = tuple(raw.datasets for raw in run.raw_files)
    numbers, rows = np.empty(run.order.n_images, np.int64), np.empty(run.order.n_images, np.int64)
    for i, positions in enumerate(run.order.positions):
        numbers[positions], rows[positions] = i, np.arange(len(positions))
    wanted = np.ones(run.order.n_images, bool)
    for i, row in enumerate(first):
        wanted &= (numbers != i) | (rows >= row)
    return Images(files, numbers[wanted], rows[wanted], run.order.image_ids[wanted])


def settled(files: Sequence[RawRows]) -> RecordedRun:
    """Return the run up to the last image before which no other one can appear any more.

    Each file holds increasing ids until they restart, and an image that is not visible yet comes after the
    last visible one of its file. A file without images leaves all of them open.
    """
    limit: int | None = None
    heads: list[int] = []
    for file in files:
        restarts = np.flatnonzero(file.image_ids[1:] <= file.image_ids[:-1])
        head = int(restarts[0]) + 1 if len(restarts) else file.n_rows
        heads.append(head)
        if file.unclosed and head == file.n_rows:
            last = int(file.image_ids[-1]) if head else -1
            limit = last if limit is None else min(limit, last)
    cut = [_first_rows(file, head, limit) for file, head in zip(files, heads, strict=True)]
    return RecordedRun(tuple(cut), None, None, order_images(cut))


def _first_rows(file: RawRows, n_rows: int, limit: int | None) -> RawRows:
    """Return the file with its first `n_rows` rows, those of ids up to `limit`."""
    ids = file.image_ids[:n_rows]
    n = len(ids)
    if limit is not None:
        n = int(np.searchsorted(ids, np.uint64(limit), side="right")) if limit >= 0 else 0
    return replace(file, image_ids=ids[:n], status=file.status[:n], epochs=file.epochs[:n])


def _datasets_of(path: Path) -> RawDatasets:
    with open_file(path, allow_unclosed=True, as_growing=True) as opened, damage_named(path):
        group = raw_group(opened.file)
        if group is None:
            raise FileLayoutError(f"{path}: is not a raw file")
        data, metadata = group["data"], group["metadata"]
        assert isinstance(data, h5py.Dataset)
        assert isinstance(metadata, h5py.Dataset)
        image_shape, run_id = (data.shape[1], data.shape[2]), Origin.of(group).run_id
        return RawDatasets(path, group.name or "", image_shape, data.dtype, metadata.dtype, run_id)
