"""Rows of raw files of a run as images in order; of files that grow, only what is new is read.

The order of images is (epoch, image id). While files grow it is known only as long as the ids of a run do not
begin again: the files tell the epochs when they are closed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from stddaq.errors import FileLayoutError
from stddaq.files.opening import damage_named, open_file
from stddaq.files.raw_rows import RawDatasets, raw_group
from stddaq.files.run import RecordedRun


@dataclass(frozen=True, slots=True)
class Images:
    """Images in order, by where they are.

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

    def behind(self, others: Images) -> Images:
        """These images behind `others`, of the same files."""
        return Images(
            self.raw_files,
            np.concatenate([others.files, self.files]),
            np.concatenate([others.rows, self.rows]),
            np.concatenate([others.ids, self.ids]),
        )


class GrowingFiles:
    """The raw files of a run that goes on, opened for each look, because HDF5 shows a handle that is kept,
    and every other one of the same process, what was there when it was opened."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Raises `FileLayoutError`."""
        self.files = tuple(_look(path) for path in paths)

    def ids(self, first: Sequence[int], sent: Sequence[int]) -> list[np.ndarray]:
        """Image ids (n,) uint64 of the rows from `first` on that can be seen, of each file.

        Rows beyond what was `sent` at that moment are left out: images that another file is yet to get may
        lie before theirs. A file without others is not looked at: that takes 0.6 ms. Raises
        `FileLayoutError` when a file holds fewer images than rows.
        """
        return [
            self._read(file, row, n_sent) if n_sent > row else np.empty(0, np.uint64)
            for file, row, n_sent in zip(self.files, first, sent, strict=True)
        ]

    def _read(self, file: RawDatasets, first: int, end: int) -> np.ndarray:
        with open_file(file.path, allow_unclosed=True, as_growing=True) as opened, damage_named(file.path):
            metadata, data = (opened.file[f"{file.group}/{name}"] for name in ("metadata", "data"))
            assert isinstance(metadata, h5py.Dataset)
            assert isinstance(data, h5py.Dataset)
            n_rows = len(metadata)
            if len(data) < n_rows:
                raise FileLayoutError(f"{file.path}: is short: {len(data)} images, {n_rows} rows")
            return metadata[first:end]["image_id"].astype(np.uint64)


def in_order(
    files: tuple[RawDatasets, ...], first: Sequence[int], ids: Sequence[np.ndarray]
) -> Images | None:
    """Images of the rows behind `first` of each file by their ids; None when ids begin again among them."""
    if any(np.any(of_file[1:] <= of_file[:-1]) for of_file in ids):
        return None
    all_ids = np.concatenate(ids)
    order = np.argsort(all_ids, kind="stable")
    numbers = np.concatenate([np.full(len(of_file), i, np.int64) for i, of_file in enumerate(ids)])
    rows = np.concatenate(
        [row + np.arange(len(of_file), dtype=np.int64) for row, of_file in zip(first, ids, strict=True)]
    )
    return Images(files, numbers[order], rows[order], all_ids[order])


def n_settled(images: Images, first: Sequence[int], sent: Sequence[int]) -> int:
    """How many of `images`, in order, can have no other image between them.

    `sent` images have gone to each file, of which some may not be visible yet: those come behind the last
    visible one of the same file.
    """
    n = len(images)
    for i, (row, n_sent) in enumerate(zip(first, sent, strict=True)):
        mine = np.flatnonzero(images.files == i)
        if row + len(mine) < n_sent:
            n = min(n, int(mine[-1]) + 1 if len(mine) else 0)
    return n


def of_closed_run(run: RecordedRun, first: Sequence[int] = ()) -> Images:
    """The images of a run whose files are closed, those before row `first` of each file left out."""
    files = tuple(raw.datasets for raw in run.raw_files)
    numbers, rows = np.empty(run.order.n_images, np.int64), np.empty(run.order.n_images, np.int64)
    for i, positions in enumerate(run.order.positions):
        numbers[positions], rows[positions] = i, np.arange(len(positions))
    wanted = np.ones(run.order.n_images, bool)
    for i, row in enumerate(first):
        wanted &= (numbers != i) | (rows >= row)
    return Images(files, numbers[wanted], rows[wanted], run.order.image_ids[wanted])


def _look(path: Path) -> RawDatasets:
    with open_file(path, allow_unclosed=True, as_growing=True) as opened, damage_named(path):
        group = raw_group(opened.file)
        if group is None:
            raise FileLayoutError(f"{path}: is not a raw file")
        data, metadata = group["data"], group["metadata"]
        assert isinstance(data, h5py.Dataset)
        assert isinstance(metadata, h5py.Dataset)
        return RawDatasets(path, group.name or "", (data.shape[1], data.shape[2]), data.dtype, metadata.dtype)
