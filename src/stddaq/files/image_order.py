"""The order of the images of a run that is spread over several raw files.

Images are ordered by (pass, image id), which is the order of their arrival. Files of ours say which writer's
they are and where ids restarted. Files without attributes (C++-made) are ordered by these rules, or refused:

* every file i holds only ids with `id % n_files == i`: division by image id; each id that does not increase
  begins the next pass, and all files that hold images must agree how many passes there are, unless a metadata
  file tells the passes;
* otherwise division by arrival: row k of file i is image `k * n_files + i` of the run, if the lengths fit;
* otherwise, if no id repeats or decreases within a file, the order of the ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stddaq.errors import FileLayoutError
from stddaq.files.raw_rows import ImageRows, RawRows


@dataclass(frozen=True, slots=True)
class ImageOrder:
    """All images of a run in order.

    Attributes:
        image_ids: (n,) uint64.
        passes: (n,) uint64.
        positions: for each file (rows,) int64, increasing: which image of the run its rows are.
        image_division: "image_id", "arrival", or None when it cannot be told.
    """

    image_ids: np.ndarray
    passes: np.ndarray
    positions: tuple[np.ndarray, ...]
    image_division: str | None

    @property
    def n_images(self) -> int:
        """Images of the run."""
        return len(self.image_ids)

    @property
    def n_gaps(self) -> int:
        """Ranges of ids that are skipped within a pass."""
        same_pass = self.passes[1:] == self.passes[:-1]
        return int(np.count_nonzero(same_pass & (self.image_ids[1:] - self.image_ids[:-1] != 1)))

    @property
    def n_restarts(self) -> int:
        """How often the ids restart."""
        return int(np.count_nonzero(self.passes[1:] != self.passes[:-1]))


def order_images(files: Sequence[RawRows]) -> ImageOrder:
    """Order the images of `files`, which are those of writer 0, 1, ... of one run.

    Raises `FileLayoutError` when an image is there twice, a file's ids are not those of its writer, or the
    order cannot be known.
    """
    divisions = {file.origin.image_division for file in files if file.origin.image_division is not None}
    if len(divisions) > 1:
        raise FileLayoutError(f"{files[0].path}: files of one run say both {' and '.join(sorted(divisions))}")
    if divisions:
        (division,) = divisions
        if division == "image_id":
            _check_writer_of_ids(files)
        return _by_pass_and_id(files, division)
    if _stranger(files) is None:
        _check_passes_agree(files)
        return _by_pass_and_id(files, "image_id" if len(files) > 1 else None)
    if _dealt_in_turn([file.n_rows for file in files]):
        return _by_arrival(files)
    restarted = next((file for file in files if file.n_restarts), None)
    if restarted is not None:
        raise FileLayoutError(
            f"{restarted.path}: its image ids restart, it does not say in which passes, and its length fits "
            "neither division of images: the order of the run's images cannot be known"
        )
    return _by_pass_and_id(files, None)


def rows_of_images(order: ImageOrder, table: ImageRows) -> np.ndarray:
    """(n,) int64: the row of `table` (a metadata file) of each image of the run.

    Raises `FileLayoutError` when it lacks an image.
    """
    wanted = _keys(order.passes, order.image_ids)
    offered = _keys(table.passes, table.image_ids)
    rows = np.searchsorted(offered, wanted)
    found = np.zeros(len(wanted), bool)
    inside = rows < len(offered)
    found[inside] = offered[rows[inside]] == wanted[inside]
    if not found.all():
        lacking = order.image_ids[~found]
        raise FileLayoutError(
            f"{table.path}: is short: it has no row for {len(lacking)} of the run's {order.n_images} images, "
            f"the first is image {lacking[0]}"
        )
    return rows.astype(np.int64)


def _by_pass_and_id(files: Sequence[RawRows], division: str | None) -> ImageOrder:
    image_ids = np.concatenate([file.image_ids for file in files])
    passes = np.concatenate([file.passes for file in files])
    # Stable sorts merge runs that are sorted already, as the rows of each file are: 10^6 images in 30 ms.
    sorted_rows = np.lexsort((image_ids, passes)) if passes.any() else np.argsort(image_ids, kind="stable")
    image_ids, passes = image_ids[sorted_rows], passes[sorted_rows]
    twice = np.flatnonzero((image_ids[1:] == image_ids[:-1]) & (passes[1:] == passes[:-1]))
    offsets = np.cumsum([0, *(file.n_rows for file in files)])
    if len(twice):
        first, second = np.searchsorted(offsets, sorted_rows[twice[0] : twice[0] + 2], side="right") - 1
        raise FileLayoutError(
            f"{files[first].path} and {files[second].path}: both hold image {image_ids[twice[0]]}"
        )
    positions = np.empty(len(sorted_rows), np.int64)
    positions[sorted_rows] = np.arange(len(sorted_rows))
    return ImageOrder(image_ids, passes, tuple(np.split(positions, offsets[1:-1])), division)


def _by_arrival(files: Sequence[RawRows]) -> ImageOrder:
    positions = tuple(np.arange(file.n_rows) * len(files) + i for i, file in enumerate(files))
    image_ids = np.empty(sum(file.n_rows for file in files), np.uint64)
    for file, places in zip(files, positions, strict=True):
        image_ids[places] = file.image_ids
    drops = np.zeros(len(image_ids), np.uint64)
    drops[1:] = image_ids[1:] <= image_ids[:-1]
    return ImageOrder(image_ids, np.cumsum(drops, dtype=np.uint64), positions, "arrival")


def _check_writer_of_ids(files: Sequence[RawRows]) -> None:
    stranger = _stranger(files)
    if stranger is not None:
        file, image_id, writer = stranger
        raise FileLayoutError(
            f"{file.path}: holds image {image_id}, which belongs to writer {image_id % len(files)} "
            f"of {len(files)}, and not to writer {writer}"
        )


def _stranger(files: Sequence[RawRows]) -> tuple[RawRows, int, int] | None:
    """A file with an image of another writer, if images are divided by id; the image, the file's writer."""
    for writer, file in enumerate(files):
        wrong = np.flatnonzero(file.image_ids % np.uint64(len(files)) != writer)
        if len(wrong):
            return file, int(file.image_ids[wrong[0]]), writer
    return None


def _check_passes_agree(files: Sequence[RawRows]) -> None:
    unsure = [file for file in files if file.n_rows and not file.passes_known]
    for file in unsure[1:]:
        if file.n_restarts != unsure[0].n_restarts:
            raise FileLayoutError(
                f"{file.path}: its image ids restart {file.n_restarts} times, those of {unsure[0].path} "
                f"{unsure[0].n_restarts} times: the order of the run's images cannot be known"
            )


def _dealt_in_turn(lengths: Sequence[int]) -> bool:
    total, n = sum(lengths), len(lengths)
    return all(length == (total - i + n - 1) // n for i, length in enumerate(lengths))


def _keys(passes: np.ndarray, image_ids: np.ndarray) -> np.ndarray:
    """(pass, id) as one sortable value each."""
    if not passes.any():
        return image_ids
    keys = np.empty(len(image_ids), [("pass", "<u8"), ("id", "<u8")])
    keys["pass"], keys["id"] = passes, image_ids
    return keys
