"""Virtual datasets over rows of other files: many rows in few mappings, with literal source names.

The master file consists of them. A mapping is an arithmetic progression of rows, so their number grows with
the gaps in a run, not with its images. Creating one takes 10 to 30 us and 115 to 190 bytes. Up to some
thousand images have a mapping each, over which HDF5 reads blocks of images 100 times as fast.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import h5py
import numpy as np
from h5py import h5d, h5g, h5p, h5s, h5t  # pyright: ignore[reportAttributeAccessIssue]

from stddaq.files.nexus import DATA, IMAGE_METADATA

# HDF5 takes 25 kB of memory for a mapping, so many stretches share mappings. With 100 of them in each, a
# file of 10000 gaps takes 5 MB and is read fastest.
MAX_SINGLE_STRETCHES = 200
STRETCHES_OF_A_MAPPING = 100
# HDF5 copies a block element by element where a mapping leaves out images between its own
# (https://github.com/h5py/h5py/issues/1597). So many single mappings are written in 60 ms and opened in 15,
# by HDF5 before 2.0 in 45; these search all of them in each read, which takes 0.4 ms.
MAX_SINGLE_IMAGES = 2048


class Mapping(NamedTuple):
    """A mapping as it is stored: `rows` of a `dataset` of a `file` (relative) are shown at `places`."""

    file: str
    dataset: str
    places: h5s.SpaceID
    rows: h5s.SpaceID


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
        by_image: whether each stretch has a mapping of its own, however many there are.
    """

    file: str
    dataset: str
    n_rows: int
    stretches: Sequence[Stretch]
    rows_are_values: bool = False
    by_image: bool = False


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
        size = _stretches_of_a_mapping(source)
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
    return -(-len(source.stretches) // _stretches_of_a_mapping(source))


def _stretches_of_a_mapping(source: MappedRows) -> int:
    is_single = source.by_image or len(source.stretches) <= MAX_SINGLE_STRETCHES
    return 1 if is_single else STRETCHES_OF_A_MAPPING


def mapped_by_image(sources: Sequence[MappedRows]) -> list[MappedRows]:
    """Return `sources` with a mapping for each image, or as they are if that would be too many.

    Neighbours of one file that are neighbours in the virtual dataset, too, stay together.
    """
    n_single = sum(1 if s.step == 1 else s.length for source in sources for s in source.stretches)
    if n_single > MAX_SINGLE_IMAGES:
        return list(sources)
    return [
        replace(source, stretches=[part for s in source.stretches for part in _images_of(s)], by_image=True)
        for source in sources
    ]


def _images_of(stretch: Stretch) -> list[Stretch]:
    start, first, step, length = stretch
    return [stretch] if step == 1 else [Stretch(start + i, first + i * step, 1, 1) for i in range(length)]


def source_files(dataset: h5py.Dataset) -> list[str]:
    """Return the names of the source files of a virtual dataset as stored (relative), each once, in order."""
    creation = dataset.id.get_create_plist()
    names = dict.fromkeys(creation.get_virtual_filename(i) for i in range(creation.get_virtual_count()))
    return [name.replace("%%", "%") for name in names]


def mappings_of(dataset: h5py.Dataset) -> list[Mapping]:
    """Return the mappings of a virtual dataset.

    Images are mapped like their rows, which stand beside them in fewer mappings.
    """
    rows = dataset.file.get(IMAGE_METADATA)
    if isinstance(rows, h5py.Dataset) and rows.is_virtual and dataset == dataset.file.get(DATA):
        of_rows = _stored_mappings(rows)
        names = [mapping.dataset.rpartition("/") for mapping in of_rows]
        if all(name == "metadata" for _, _, name in names):
            return [
                mapping._replace(dataset=f"{group}/data")
                for mapping, (group, _, _) in zip(of_rows, names, strict=True)
            ]
    return _stored_mappings(dataset)


def _stored_mappings(dataset: h5py.Dataset) -> list[Mapping]:
    return [
        Mapping(source.file_name.replace("%%", "%"), source.dset_name, source.vspace, source.src_space)
        for source in dataset.virtual_sources()
    ]
