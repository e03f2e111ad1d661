"""Virtual datasets over rows of other files: many rows in few mappings, with literal source names.

The master file consists of them. A mapping is an arithmetic progression of rows, so their number grows with
the gaps in a run, not with its images. Creating one takes 10 to 30 us and 190 bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import h5py
import numpy as np
from h5py import h5d, h5g, h5p, h5s, h5t  # pyright: ignore[reportAttributeAccessIssue]

# HDF5 takes 25 kB of memory for a mapping, so many stretches share mappings. With 100 of them in each, a
# file of 10000 gaps takes 5 MB and is read fastest.
MAX_SINGLE_STRETCHES = 200
STRETCHES_OF_A_MAPPING = 100


class Stretch(NamedTuple):
    """`length` consecutive indices from `start`, whose values are `first`, `first + step`, ..."""

    start: int
    first: int
    step: int
    length: int


@dataclass(frozen=True, slots=True)
class MappedRows:
    """Rows of one dataset of another file.

    Attributes:
        file: name of the file, relative to the directory of the file with the virtual dataset.
        dataset: full name of the dataset in it, of `n_rows` rows.
        stretches: its rows and their places in the virtual dataset.
        rows_are_values: if False, indices are rows and values are places; if True, the reverse.
    """

    file: str
    dataset: str
    n_rows: int
    stretches: Sequence[Stretch]
    rows_are_values: bool = False


def stretches(values: np.ndarray) -> list[Stretch]:
    """Cut the increasing integers `values` (n,) into progressions of equal steps, greedily from the left."""
    n = len(values)
    if n < 2:
        return [Stretch(0, int(values[0]), 1, 1)] if n else []
    steps = np.diff(values)
    # Index of the last value of each series of equal steps.
    ends = [*(np.flatnonzero(steps[1:] != steps[:-1]) + 1).tolist(), n - 1]
    found: list[tuple[int, int]] = []
    start = 0
    for end in ends:
        # The value between two series belongs to the earlier one, unless that is a single step.
        if end > start:
            found.append((start, end))
            start = end + 1
    if start < n:
        found.append((start, n - 1))
    return [
        Stretch(start, int(values[start]), int(steps[start]) if end > start else 1, end - start + 1)
        for start, end in found
    ]


def stretches_of(kept: np.ndarray, values: np.ndarray) -> list[Stretch]:
    """Cut `values` (n,) into progressions as `stretches` does, without those that are not `kept` (n,)."""
    if kept.all():
        return stretches(values)
    edges = np.flatnonzero(np.diff(kept.astype(np.int8), prepend=0, append=0)).reshape(-1, 2).tolist()
    return [
        Stretch(begin + start, first, step, length)
        for begin, end in edges
        for start, first, step, length in stretches(values[begin:end])
    ]


def create_virtual_dataset(
    group: h5g.GroupID,
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype,
    sources: Sequence[MappedRows],
    fill: np.ndarray | None = None,
) -> h5d.DatasetID:
    """Create dataset `name` of `shape` whose first axis is assembled from `sources`.

    HDF5 shows `fill` (a scalar of `dtype`, default zero) for sources that are lost later.
    """
    creation = h5p.create(h5p.DATASET_CREATE)
    creation.set_layout(h5d.VIRTUAL)
    if fill is not None:
        creation.set_fill_value(fill)
    image, whole = shape[1:], (0,) * (len(shape) - 1)
    ones = (1,) * len(image)
    virtual = h5s.create_simple(shape)
    for source in sources:
        # HDF5 reads %b in a name as a pattern, and %% as %.
        file, dataset = (text.replace("%", "%%").encode() for text in (source.file, source.dataset))
        rows = h5s.create_simple((source.n_rows, *image))
        places, indices = (rows, virtual) if source.rows_are_values else (virtual, rows)
        size = _stretches_of_a_mapping(len(source.stretches))
        for begin in range(0, len(source.stretches), size):
            operation = h5s.SELECT_SET
            for start, first, step, length in source.stretches[begin : begin + size]:
                indices.select_hyperslab((start, *whole), (1, *ones), block=(length, *image), op=operation)
                places.select_hyperslab(
                    (first, *whole), (length, *ones), (step, *ones), (1, *image), op=operation
                )
                operation = h5s.SELECT_OR
            creation.set_virtual(virtual, file, dataset, rows)
    virtual.select_all()
    return h5d.create(group, name.encode(), h5t.py_create(dtype, logical=True), virtual, creation)


def n_mappings(source: MappedRows) -> int:
    """Return how many mappings a source takes."""
    n = len(source.stretches)
    return -(-n // _stretches_of_a_mapping(n))


def _stretches_of_a_mapping(n_stretches: int) -> int:
    return 1 if n_stretches <= MAX_SINGLE_STRETCHES else STRETCHES_OF_A_MAPPING


def source_files(dataset: h5py.Dataset) -> list[str]:
    """Return the names of the source files of a virtual dataset as stored (relative), each once, in order."""
    creation = dataset.id.get_create_plist()
    names = dict.fromkeys(creation.get_virtual_filename(i) for i in range(creation.get_virtual_count()))
    return [name.replace("%%", "%") for name in names]
