"""The tables and attributes of raw files, read by h5py's low-level interface.

A run may have 16 files with 10^6 rows, and a reader waits until all of them are read. h5py's own interface
takes three times as long, and new memory is dear, because the kernel clears it: a column takes none where all
its values are the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from h5py import h5a, h5d, h5p, h5s, h5t  # pyright: ignore[reportAttributeAccessIssue]

from stddaq.errors import FileLayoutError

# Rows that are read and examined at once: they stay in the cache of the core.
BLOCK_ROWS = 2**15

_COLUMNS = ("image_id", "status")
_ROW = np.dtype([(name, np.uint64) for name in _COLUMNS])
_ROW_IN_MEMORY = h5t.py_create(_ROW)
# Each chunk is read once, directly to where it is wanted.
_UNCACHED = h5p.create(h5p.DATASET_ACCESS)
_UNCACHED.set_chunk_cache(1, 0, 0.0)
_TEXT = h5py.string_dtype()
_TEXT_IN_FILE, _TEXT_IN_MEMORY = h5t.py_create(_TEXT, logical=True), h5t.py_create(_TEXT)


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of `metadata` of a raw file.

    Attributes:
        image_ids: (n,) uint64.
        status: (n,) uint64; all are one value in memory if they are the same.
        id_step: from each id to the next one, if all steps are the same and positive; else 0.
        dtype: of a row in the file.
    """

    image_ids: np.ndarray
    status: np.ndarray
    id_step: int
    dtype: np.dtype

    def without_unused(self, n_images: int) -> Rows:
        """Return the rows of the images: a C++ writer leaves 1048576, the others zero, beside one image."""
        if self.image_ids[n_images:].any() or self.status[n_images:].any():
            return self
        return Rows(self.image_ids[:n_images], self.status[:n_images], self.id_step, self.dtype)


def read_rows(path: Path, metadata: h5py.Dataset, space: np.ndarray | None = None) -> Rows:
    """Read `metadata` of the raw file `path`, the ids to `space` (m,) uint64 if they fit.

    Raises `FileLayoutError` for a dataset of another kind.
    """
    stored = metadata.id.get_type()
    dtype = _ROW if stored.equal(_ROW_IN_MEMORY) else metadata.dtype
    fields = dtype.fields or {}
    if metadata.ndim != 1 or any(name not in fields or fields[name][0] != np.uint64 for name in _COLUMNS):
        table = read_table(path, metadata, _COLUMNS)
        image_ids, status = (table[name].astype(np.uint64, copy=False) for name in _COLUMNS)
        return Rows(image_ids, status, 0, dtype)
    n = metadata.shape[0]
    image_ids = np.empty(n, np.uint64) if space is None or len(space) < n else space[:n]
    status, steps = _Status(n), _Steps()
    for start, rows in blocks_of(metadata, _ROW_IN_MEMORY):
        end = start + len(rows)
        image_ids[start:end] = rows["image_id"]
        status.add(start, rows["status"])
        steps.add(image_ids[max(0, start - 1) : end])
    return Rows(image_ids, status.values(), steps.common(), dtype)


def blocks_of(dataset: h5py.Dataset, in_memory: h5t.TypeID) -> Iterator[tuple[int, np.ndarray]]:
    """Read a dataset (n,) in blocks: first row, and values that are valid until the next block."""
    n, chunk = dataset.shape[0], dataset.chunks[0] if dataset.chunks else 1
    size = max(1, BLOCK_ROWS // chunk) * chunk
    in_file, block = dataset.id.get_space(), np.empty(min(n, size), in_memory.dtype)
    for start in range(0, n, size):
        values = block[: min(size, n - start)]
        in_file.select_hyperslab((start,), (len(values),))
        dataset.id.read(h5s.create_simple(values.shape), in_file, values, in_memory)
        yield start, values


class _Status:
    """A column that is one value while all values are the same."""

    def __init__(self, n: int) -> None:
        self._n, self._value, self._all = n, np.uint64(0), None

    def add(self, start: int, values: np.ndarray) -> None:
        if not start:
            self._value = values[0]
        if self._all is None:
            if (values == self._value).all():
                return
            self._all = np.full(self._n, self._value)
        self._all[start : start + len(values)] = values

    def values(self) -> np.ndarray:
        return np.broadcast_to(self._value, self._n) if self._all is None else self._all


class _Steps:
    """The smallest and largest step between neighbours."""

    def __init__(self) -> None:
        self._smallest, self._largest = 2**63 - 1, 0

    def add(self, values: np.ndarray) -> None:
        if len(values) > 1 and self._smallest > 0:
            # A step back is negative.
            steps = (values[1:] - values[:-1]).view(np.int64)
            self._smallest = min(self._smallest, int(steps.min()))
            self._largest = max(self._largest, int(steps.max()))

    def common(self) -> int:
        return self._largest if self._smallest == self._largest else 0


def read_table(path: Path, dataset: h5py.Dataset, columns: tuple[str, ...]) -> np.ndarray:
    """Read integer `columns` of a table (n,). Raises `FileLayoutError` if it has others."""
    dtype = dataset.dtype
    names = dtype.names or ()
    missing = [name for name in columns if name not in names or dtype[name].kind not in "ui"]
    if dataset.ndim != 1 or missing:
        raise FileLayoutError(
            f"{path}: {dataset.name}: found shape {dataset.shape} of {dtype}, "
            f"expected one row per image with integer fields {', '.join(columns)}"
        )
    return dataset.fields(list(columns))[()] if len(names) > len(columns) else dataset[()]


def dataset_of(group: h5py.Group, name: str) -> h5py.Dataset | None:
    """Return a dataset of a group, which is opened to be read once; None if it is absent or a group."""
    try:
        return h5py.Dataset(h5d.open(group.id, name.encode(), _UNCACHED))
    except KeyError:
        return None


def integer_attribute(group: h5py.HLObject, name: str) -> int | None:
    """Return an attribute; None if it is absent or no integer."""
    value = _attribute(group, name, h5t.NATIVE_INT64, np.empty((), np.int64), h5t.NATIVE_INT64)
    return int(value) if isinstance(value, int | np.integer) else None


def text_attribute(group: h5py.HLObject, name: str) -> str | None:
    """Return an attribute; None if it is absent or no text."""
    value = _attribute(group, name, _TEXT_IN_FILE, np.empty((), _TEXT), _TEXT_IN_MEMORY)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if isinstance(value, str) else None


def _attribute(
    group: h5py.HLObject, name: str, in_file: h5t.TypeID, value: np.ndarray, in_memory: h5t.TypeID
) -> object:
    """Return an attribute, read to `value` if it is a scalar of the type `in_file`; None if it is absent."""
    if not h5a.exists(group.id, name.encode()):
        return None
    attribute = h5a.open(group.id, name.encode())
    is_scalar = attribute.get_space().get_simple_extent_type() == h5s.SCALAR
    # HDF5 would convert integers of another type, and clip those that are too large.
    if not is_scalar or not attribute.get_type().equal(in_file):
        return group.attrs.get(name)
    attribute.read(value, in_memory)
    return value[()]
