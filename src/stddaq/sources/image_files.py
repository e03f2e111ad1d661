"""Recorded images as stacks that are read image by image: HDF5 datasets, npy arrays, TIFF files.

`open_images` recognises a file by its content, not by its name. It reads on demand, in blocks of at most
`BLOCK_BYTES`. Every mistake is a `SourceError` of one line that names the file.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import h5py
import hdf5plugin  # noqa: F401  Registers the compression filters of HDF5 with h5py.
import numpy as np
import tifffile

from stddaq.closing import Closing
from stddaq.errors import SourceError
from stddaq.files.opening import check_is_file
from stddaq.text import mismatch

# A stack up to this size is read once and kept. A larger one is read in blocks.
CACHE_BYTES = 256 * 2**20
BLOCK_BYTES = 32 * 2**20
# Levels that name a default in NeXus: entry, data, dataset. Links can form a circle.
MAX_DEFAULTS = 8
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


class Stack(Protocol):
    """A stack of images in a file of any format."""

    shape: tuple[int, int, int]
    dtype: np.dtype

    def read(self, first: int, end: int) -> np.ndarray:
        """Return images `first` to `end` - 1 as an array (end - first, height, width)."""
        ...

    def close(self) -> None: ...


class RecordedImages(Closing):
    """The images of one file, read on demand.

    Attributes:
        where: file and dataset, for messages.
        shape: (n, height, width).
        dtype: pixel type in the file.
    """

    def __init__(self, where: str, stack: Stack) -> None:
        self.where, self._stack = where, stack
        self.shape, self.dtype = stack.shape, stack.dtype
        image_bytes = max(1, self.shape[1] * self.shape[2] * self.dtype.itemsize)
        whole = self.shape[0] * image_bytes <= CACHE_BYTES
        self._per_block = self.shape[0] if whole else max(1, BLOCK_BYTES // image_bytes)
        self._first, self._block = 0, np.empty((0, *self.shape[1:]), self.dtype)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int) -> np.ndarray:
        """Return image `index` (from 0) as an array (height, width). Raise `SourceError`."""
        if not self._first <= index < self._first + len(self._block):
            first = index - index % self._per_block
            with _naming(f"{self.where}: image {index} cannot be read"):
                self._block = self._stack.read(first, min(first + self._per_block, len(self)))
            self._first = first
        return self._block[index - self._first]

    def close(self) -> None:
        self._stack.close()


def open_images(name: str) -> RecordedImages:
    """Open `FILE` or, of an HDF5 file, `FILE:dataset`. Raise `SourceError`.

    Without a name, an HDF5 file shows its NeXus default, or else its first numeric dataset of three
    dimensions. Two dimensions are one image.
    """
    path, dataset = _split(name)
    with _naming(f"{path}: cannot be read"):
        check_is_file(path)
        with path.open("rb") as file:
            magic = file.read(8)
        is_hdf5 = h5py.is_hdf5(path)
    if dataset is not None and not is_hdf5:
        raise SourceError(mismatch(f"{path}", f"an HDF5 file with the dataset {dataset}", "another format"))
    with _naming(f"{path}: cannot be read"):
        if is_hdf5:
            return _open_hdf5(path, dataset)
        if magic.startswith(b"\x93NUMPY"):
            return RecordedImages(str(path), _NpyStack(path))
        if magic.startswith(_TIFF_MAGIC):
            return RecordedImages(str(path), _TiffStack(path))
    raise SourceError(mismatch(f"{path}", "an HDF5, npy or TIFF file", "another format"))


def read_image_ids(name: str, n_images: int, last_id: int) -> np.ndarray:
    """Return the image ids in `FILE:dataset`: uint64, one per image, up to `last_id`. Raise `SourceError`."""
    path, dataset = _split(name)
    if dataset is None:
        raise SourceError(mismatch(name, "FILE:dataset of an HDF5 file", "no dataset"))
    with _naming(f"{path}: cannot be read"):
        check_is_file(path)
    with _naming(f"{path}: cannot be read"), h5py.File(path) as file:
        found = file.get(dataset)
        if not isinstance(found, h5py.Dataset) or found.dtype.kind not in "ui" or found.shape != (n_images,):
            raise SourceError(mismatch(name, f"{n_images} integers", _described(found)))
        ids = found[()]
    for extreme in (int(ids.min()), int(ids.max())):
        if not 0 <= extreme <= last_id:
            raise SourceError(mismatch(name, f"image ids from 0 to {last_id}", f"{extreme}"))
    return ids.astype(np.uint64)


def _split(name: str) -> tuple[Path, str | None]:
    path = Path(name)
    with _naming(f"{path}: cannot be read"):
        exists = path.exists()
    if exists or ":" not in name:
        return path, None
    file, _, dataset = name.rpartition(":")
    return Path(file), dataset


@contextmanager
def _naming(what: str) -> Iterator[None]:
    """Turn any exception of the libraries for a broken file into one line that starts with `what`."""
    try:
        yield
    except SourceError:
        raise
    except OSError as error:
        raise SourceError(f"{what}: {error.strerror or error}") from error
    except Exception as error:  # Libraries raise any exception for damaged files.
        raise SourceError(f"{what}: {error or type(error).__name__}") from error


def _as_stack_shape(shape: tuple[int, ...], dtype: np.dtype, where: str) -> tuple[int, int, int]:
    if dtype.kind not in "uifb" or len(shape) not in (2, 3) or 0 in shape:
        size = "x".join(map(str, shape)) or "one value"
        expected = "numbers in two (one image) or three dimensions"
        raise SourceError(mismatch(where, expected, f"{size} of {dtype}"))
    return (1, *shape) if len(shape) == 2 else shape  # pyright: ignore[reportReturnType]


class _Hdf5Stack(Stack):
    def __init__(self, file: h5py.File, dataset: h5py.Dataset) -> None:
        self._file, self._dataset = file, dataset
        self.shape = _as_stack_shape(dataset.shape, dataset.dtype, f"{file.filename}:{dataset.name}")
        self.dtype = dataset.dtype

    def read(self, first: int, end: int) -> np.ndarray:
        if self._dataset.ndim == 2:
            return self._dataset[()][None]
        return self._dataset[first:end]

    def close(self) -> None:
        self._file.close()


def _open_hdf5(path: Path, dataset: str | None) -> RecordedImages:
    file = h5py.File(path)
    try:
        found = file.get(dataset) if dataset is not None else _default_images(file)
        if not isinstance(found, h5py.Dataset):
            wanted = "a dataset of images" if dataset is None else f"the dataset {dataset}"
            raise SourceError(mismatch(f"{path}", wanted, _listing(file)))
        return RecordedImages(f"{path}:{found.name}", _Hdf5Stack(file, found))
    except BaseException:
        file.close()
        raise


def _default_images(file: h5py.File) -> h5py.Dataset | None:
    """Follow NeXus' `default` and `signal`, or else return the first stack of images."""
    node = file
    for _ in range(MAX_DEFAULTS):
        if not (isinstance(node, h5py.Group) and isinstance(name := node.attrs.get("default"), str)):
            break
        node = node.get(name)
    if isinstance(node, h5py.Group) and isinstance(signal := node.attrs.get("signal"), str):
        node = node.get(signal)
    if isinstance(node, h5py.Dataset) and node.ndim in (2, 3):
        return node
    stacks = _numeric_datasets(file, 3) or _numeric_datasets(file, 2)
    return stacks[0] if stacks else None


def _numeric_datasets(file: h5py.File, n_dimensions: int) -> list[h5py.Dataset]:
    found: list[h5py.Dataset] = []

    def look(_name: str, node: h5py.HLObject) -> None:
        if isinstance(node, h5py.Dataset) and node.ndim == n_dimensions and node.dtype.kind in "uif":
            found.append(node)

    file.visititems(look)
    return found


def _listing(file: h5py.File) -> str:
    datasets: list[str] = []
    file.visititems(
        lambda _, node: (
            datasets.append(f"{node.name} ({_described(node)})") if isinstance(node, h5py.Dataset) else None
        )
    )
    return ", ".join(datasets[:8]) + (", ..." if len(datasets) > 8 else "") if datasets else "no datasets"


def _described(node: object) -> str:
    if not isinstance(node, h5py.Dataset):
        return "no dataset" if node is None else "a group"
    return f"{'x'.join(map(str, node.shape)) or 'one value'} of {node.dtype}"


class _NpyStack(Stack):
    def __init__(self, path: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Headers of other Python versions cause warnings.
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        self.shape, self.dtype = _as_stack_shape(array.shape, array.dtype, str(path)), array.dtype
        self._array: np.ndarray = array.reshape(self.shape)

    def read(self, first: int, end: int) -> np.ndarray:
        return np.array(self._array[first:end])

    def close(self) -> None:
        del self._array


class _StrictHandler(logging.Handler):
    """Raises errors that tifffile only logs before it continues with zeros."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR:
            raise ValueError(record.getMessage())


class _TiffStack(Stack):
    """The first series of a TIFF file: its pages, or the one block that ImageJ writes."""

    def __init__(self, path: Path) -> None:
        log = tifffile.logger()
        log.handlers[:], log.propagate = [_StrictHandler()], False
        self._file = tifffile.TiffFile(path)
        try:
            self._series = self._file.series[0]
            dtype = self._series.dtype
            if dtype is None:
                raise SourceError(mismatch(f"{path}", "a TIFF file with pixels", "one without"))
            self.shape, self.dtype = _as_stack_shape(self._series.shape, dtype, str(path)), dtype
        except BaseException:
            self._file.close()
            raise

    def read(self, first: int, end: int) -> np.ndarray:
        if len(self._series.pages) == self.shape[0]:
            pages = [self._series.asarray(key=i) for i in range(first, end)]
            return np.stack(pages)
        return self._series.asarray().reshape(self.shape)[first:end]

    def close(self) -> None:
        self._file.close()
