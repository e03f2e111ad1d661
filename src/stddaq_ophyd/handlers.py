"""Handlers for databroker, event-model's Filler and users: the images of a point as a lazy array.

`PublishedImagesHandler` reads a published images file or a master file, `RawFilesHandler` n raw files as one
array. No image is read before the array is computed. A file is opened for each read and never kept or
refreshed, so that arrays may be computed in several threads and while the files grow.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import dask.array
import h5py
import hdf5plugin  # noqa: F401  (registers the filters of compressed images)
import numpy as np

from stddaq.errors import FileLayoutError
from stddaq.files.growing_run import Images, of_closed_run
from stddaq.files.names import find_run, sibling
from stddaq.files.nexus import DATA
from stddaq.files.opening import damage_named, open_file
from stddaq.files.raw_rows import raw_group
from stddaq.files.run import read_run
from stddaq.files.sources import ImagesMissingError
from stddaq.files.virtual_images import VirtualImages
from stddaq.text import mismatch
from stddaq_ophyd.core.datum_rows import DatumRows, datum_rows

# A block of images of a point is not larger, unless one image is.
BLOCK_BYTES = 64 * 2**20


class PublishedImagesHandler:
    """Images of a published images file, or of a master file (Resource of spec STDDAQ_PUBLISHED).

    Unlike a plain HDF5 reader it raises an error when a raw file is missing or short.
    """

    specs: ClassVar[set[str]] = {"STDDAQ_PUBLISHED"}
    return_type: ClassVar[dict[str, bool]] = {"delayed": True}

    def __init__(self, path: str | Path, frame_per_point: int = 1, dataset: str = DATA) -> None:
        """`frame_per_point` is the number of images per event, `dataset` their name in the file `path`."""
        self._images, self._n_images = VirtualImages(Path(path), dataset), frame_per_point

    def __call__(self, point_number: int) -> dask.array.Array:
        """Return the images of a point, (images per event, height, width).

        The call and the computation raise `FileLayoutError`.
        """
        first = point_number * self._n_images
        shape, dtype = self._images.check(first, first + self._n_images)
        return lazy_array(
            lambda start, stop: self._images.read(first + start, first + stop),
            self._n_images,
            shape[1:],
            dtype,
        )


class RawFilesHandler:
    """Images of n raw files as one array (Resource of spec STDDAQ_RAW, whose path is the file of writer 0).

    A Datum of a device holds the rows of its point (`core.datum_rows`), and can be read while the files grow.
    Without rows, points follow each other in the order of the run, whose files must be closed.
    """

    specs: ClassVar[set[str]] = {"STDDAQ_RAW"}
    return_type: ClassVar[dict[str, bool]] = {"delayed": True}

    def __init__(self, path: str | Path, frame_per_point: int = 1, template: str | None = None) -> None:
        """`path` is the file of writer 0, `frame_per_point` the number of images per event.

        `template` is the name of a raw file with `{writer}` for the number; by default `path` implies it.
        """
        self._path, self._n_images, self._template = Path(path), frame_per_point, template
        self._guard = threading.Lock()
        self._run: Images | None = None

    def __call__(
        self, point_number: int = 0, rows: Sequence[Sequence[int]] | None = None
    ) -> dask.array.Array:
        """Return the images of a point, (images per event, height, width).

        The call and the computation raise `FileLayoutError`.
        """
        parts = self._parts_of_point(point_number) if rows is None else [DatumRows(*part) for part in rows]
        if sum(part.n for part in parts) != self._n_images:
            n_rows = sum(part.n for part in parts)
            raise FileLayoutError(
                mismatch(f"Datum of {self._path}", f"{self._n_images} rows as in its Resource", str(n_rows))
            )
        shape, dtype = self._check(parts)

        def read(start: int, stop: int) -> np.ndarray:
            images = np.empty((stop - start, *shape), dtype)
            for part in parts:
                self._read_part(part, start, stop, images)
            return images

        return lazy_array(read, self._n_images, shape, dtype)

    def _check(self, parts: Sequence[DatumRows]) -> tuple[tuple[int, ...], np.dtype]:
        """Return shape and type of the images. Raises `FileLayoutError` when images differ or are missing."""
        found: dict[tuple[tuple[int, ...], np.dtype], Path] = {}
        for part in parts:
            with _raw_images(self._file(part.writer), part.row + part.n) as images:
                found.setdefault((images.shape[1:], images.dtype), self._file(part.writer))
        if len(found) != 1:
            raise FileLayoutError(
                mismatch(str(self._path), "images of one shape and type in all raw files", str(found))
            )
        return next(iter(found))

    def _read_part(self, part: DatumRows, start: int, stop: int, images: np.ndarray) -> None:
        """Copy the images of `part` that are among images `start` to `stop` of the point."""
        first = max(0, -(-(start - part.first) // part.step))
        last = min(part.n, -(-(stop - part.first) // part.step))
        if last <= first:
            return
        path = self._file(part.writer)
        with _raw_images(path, part.row + last) as stored, damage_named(path):
            places = slice(part.first + first * part.step - start, None, part.step)
            images[places][: last - first] = stored[part.row + first : part.row + last]

    def _file(self, writer: int) -> Path:
        if self._template is not None:
            return self._path.with_name(self._template.replace("{writer}", str(writer)))
        raw = find_run(self._path).raw
        return raw[writer] if writer < len(raw) else sibling(raw, writer)

    def _parts_of_point(self, point_number: int) -> list[DatumRows]:
        with self._guard:
            if self._run is None:
                self._run = of_closed_run(read_run(find_run(self._path).raw))
        files, rows = self._run.files, self._run.rows
        first, stop = point_number * self._n_images, (point_number + 1) * self._n_images
        if stop > len(files):
            raise ImagesMissingError(
                mismatch(
                    f"point {point_number} of {self._path}",
                    f"{stop} images in the run",
                    str(len(files)),
                )
            )
        return datum_rows(files[first:stop], rows[first:stop])


@contextmanager
def _raw_images(path: Path, n_rows: int) -> Iterator[h5py.Dataset]:
    """Open the images of a raw file. Raises `ImagesMissingError` when it holds less than `n_rows`."""
    if not path.exists():
        raise ImagesMissingError(f"{path}: is missing, no such file")
    with open_file(path, allow_unclosed=True) as opened:
        group = raw_group(opened.file)
        images = group["data"] if group else None
        if not isinstance(images, h5py.Dataset) or images.ndim != 3:
            raise FileLayoutError(mismatch(str(path), "a raw file", "a file without images"))
        if images.shape[0] < n_rows:
            raise ImagesMissingError(mismatch(f"{path}: is short", f"{n_rows} images", str(images.shape[0])))
        yield images


class _Images:
    """The array (n, height, width) that dask slices: it reads images in blocks, as thread-safe as `read`."""

    def __init__(
        self, read: Callable[[int, int], np.ndarray], shape: tuple[int, ...], dtype: np.dtype
    ) -> None:
        self.read, self.shape, self.dtype, self.ndim = read, shape, dtype, len(shape)

    def __getitem__(self, index: Iterable[slice]) -> np.ndarray:
        images, *rest = index
        start, stop, step = images.indices(self.shape[0])
        return self.read(start, stop)[(slice(None, None, step), *rest)]


def lazy_array(
    read: Callable[[int, int], np.ndarray], n_images: int, shape: tuple[int, ...], dtype: np.dtype
) -> dask.array.Array:
    """Return an array `(n_images, *shape)` in blocks of images, each read when it is computed."""
    block = max(1, BLOCK_BYTES // max(1, int(np.prod(shape)) * dtype.itemsize))
    images = _Images(read, (n_images, *shape), dtype)
    chunks = (block, *shape)
    # dask's annotation of chunks allows its default only.
    return dask.array.from_array(images, chunks, name=False, asarray=True, fancy=False)  # pyright: ignore[reportArgumentType]
