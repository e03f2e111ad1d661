"""The images of a run as an array (n, height, width) that is read when it is indexed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from stddaq.errors import FileLayoutError
from stddaq.files.nexus import lost_pixel
from stddaq.files.raw_pixels import read_images
from stddaq.files.selection import integer, positions_of
from stddaq.text import bytes_text, mismatch

if TYPE_CHECKING:
    import dask.array
    import xarray

    from stddaq.files.reading import Run

BLOCK_BYTES = 256 * 2**20
DASK_BLOCK_BYTES = 128 * 2**20
# Whole images that are read to take parts of them; one image may be larger.
TEMPORARY_BYTES = 64 * 2**20
# `numpy.asarray(run.images)` reads no more than this by mistake.
MAX_ARRAY_BYTES = 4 * 2**30
EVERYTHING = slice(None)


class LazyImages:
    """The images of a `Run`. Indexing reads a numpy array, which is masked if the run masks lost images.

    Images are selected by an integer, a slice, a list of integers in any order, or booleans (n,); their lines
    and columns by integers and slices. Every read raises `LostImagesError` for images without pixels, unless
    the run masks them, and `FileLayoutError` for files that are missing, damaged or replaced.
    """

    ndim = 3

    def __init__(self, run: Run) -> None:
        self._run = run

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (number of images, height, width)."""
        return (self._run.n_images, *self._run.image_shape)

    @property
    def dtype(self) -> np.dtype:
        """Return the type of a pixel."""
        return self._run.dtype

    @property
    def nbytes(self) -> int:
        """Return the bytes of all images in memory."""
        return len(self) * self._image_bytes

    @property
    def chunks(self) -> tuple[int, int, int]:
        """Return the shape of the blocks that are read fastest: a chunk of each raw file."""
        return (self._run.images_of_chunks, *self._run.image_shape)

    def __len__(self) -> int:
        return self._run.n_images

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, key: Any) -> Any:
        if (type(key) is int or isinstance(key, np.integer)) and (image := self._whole(int(key))) is not None:
            return image
        images, y, x = _expanded(key)
        positions, is_single = positions_of("index of images", images, len(self))
        found = self._read(positions, y, x)
        return found[0] if is_single else found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError(mismatch("images of a run", "copy=True or None", "copy=False"))
        if self.nbytes > MAX_ARRAY_BYTES:
            expected = f"at most {bytes_text(MAX_ARRAY_BYTES)} as one array"
            advice = "take a part of them, blocks() or dask()"
            raise MemoryError(mismatch("images of a run", expected, bytes_text(self.nbytes), advice))
        images = np.asarray(self[:])
        return images if dtype is None else images.astype(dtype, copy=False)

    def __repr__(self) -> str:
        return f"<images {self.shape} {self.dtype} of {self._run.path}>"

    def blocks(self, max_bytes: int = BLOCK_BYTES) -> Iterator[tuple[slice, np.ndarray]]:
        """Read all images in order, in blocks of at most `max_bytes` or one image: (slice, images).

        Raises `TypeError` and `ValueError` unless `max_bytes` is an integer above 0.
        """
        n, step = len(self), self._images_within(integer("max_bytes", max_bytes, 1))
        blocks = (slice(start, min(start + step, n)) for start in range(0, n, step))
        return ((images, self[images]) for images in blocks)

    def dask(self, images_per_block: int | None = None) -> dask.array.Array:
        """Return a dask array in blocks of images, by default of about 128 MiB. Needs dask.

        Raises `FileLayoutError` for a run that grows, `TypeError` and `ValueError` unless
        `images_per_block` is an integer above 0.
        """
        import dask.array

        if images_per_block is None:
            images_per_block = self._images_within(DASK_BLOCK_BYTES)
        images_per_block = integer("images_per_block", images_per_block, 1)

        if self._run.growing:
            where, advice = str(self._run.path), "take run.select(rows=slice(n)) first"
            raise FileLayoutError(mismatch(where, "closed files for dask", "a run that grows", advice))
        blocks: Any = (images_per_block, *self._run.image_shape)
        empty = np.empty((0, 0, 0), self.dtype)
        meta = np.ma.masked_array(empty) if self._run.losses == "mask" else empty
        return dask.array.from_array(self, blocks, asarray=False, fancy=False, inline_array=True, meta=meta)

    def xarray(self) -> xarray.DataArray:
        """Return `dask` with the dimensions image, y, x and the ids and status of images. Needs xarray."""
        import xarray

        coordinates = {"image_id": ("image", self._run.image_ids), "status": ("image", self._run.status)}
        return xarray.DataArray(self.dask(), dims=("image", "y", "x"), coords=coordinates, name="images")

    def __dask_tokenize__(self) -> Any:
        return "stddaq", repr(self._run.identity)

    def _whole(self, position: int) -> np.ndarray | None:
        """Read one image without the arrays of many, which takes 10 instead of 100 us beside the copy.

        None if it is not a good image whose place is known, or has to be masked.
        """
        run, n = self._run, len(self)
        if run.losses == "mask" or not -n <= position < n:
            return None
        stored_at = run.stored_if_good(position % n)
        if stored_at is None:
            return None
        file, row = stored_at
        image = np.empty(run.image_shape, run.dtype)
        return image if run.raw_files[file].read_known(row, image) else None

    def _read(self, positions: np.ndarray, y: Any, x: Any) -> np.ndarray:
        height, width = self._run.image_shape
        # Raises IndexError, and has the shape of the result.
        part = np.empty((0, height, width), self.dtype)[:, y, x]
        out = np.empty((len(positions), *part.shape[1:]), self.dtype)
        lost = self._run.check_lost(positions)
        present = np.flatnonzero(~lost)
        lines, y = _lines(y, height)
        if isinstance(y, slice) and y == EVERYTHING and isinstance(x, slice) and _is_whole(x, width):
            self._copy(positions[present], out, present, lines)
        else:
            step = self._images_within(TEMPORARY_BYTES)
            for start in range(0, len(present), step):
                some = present[start : start + step]
                block = np.empty((len(some), len(lines), width), self.dtype)
                self._copy(positions[some], block, np.arange(len(some)), lines)
                out[some] = block[:, y, x]
        if self._run.losses != "mask":
            return out
        out[lost] = fill = lost_pixel(self.dtype)
        mask = np.zeros(out.shape, bool)
        mask[lost] = True
        return np.ma.masked_array(out, mask, fill_value=fill.item())

    def _copy(self, positions: np.ndarray, out: np.ndarray, places: np.ndarray, lines: range) -> None:
        files, rows = self._run.stored_at(positions)
        read_images(self._run.raw_files, files, rows, out, places, lines)

    @property
    def _image_bytes(self) -> int:
        height, width = self._run.image_shape
        return height * width * self.dtype.itemsize

    def _images_within(self, n_bytes: int) -> int:
        """Return how many images fit, at least one; whole chunks of all files, if some fit."""
        n, chunks = max(1, n_bytes // max(1, self._image_bytes)), self._run.images_of_chunks
        return n // chunks * chunks if n > chunks else n


def _expanded(key: Any) -> tuple[Any, Any, Any]:
    """Return the indices of the three dimensions. Raises `IndexError`."""
    keys = key if isinstance(key, tuple) else (key,)
    dots = [i for i, one in enumerate(keys) if one is Ellipsis]
    if len(dots) > 1 or len(keys) - len(dots) > 3:
        raise IndexError(mismatch("index of images", "at most three dimensions", str(key)))
    at = dots[0] if dots else len(keys)
    before, after = keys[:at], keys[at + 1 :]
    images, y, x = (*before, *[EVERYTHING] * (3 - len(before) - len(after)), *after)
    for one in (y, x):
        if not isinstance(one, slice | int | np.integer) or isinstance(one, bool):
            raise IndexError(mismatch("index of lines and columns", "integers and slices", str(one)))
    return images, y, x


def _lines(y: Any, height: int) -> tuple[range, Any]:
    """Return which lines of images to read, and the index of the wanted ones among them."""
    if not isinstance(y, slice):
        line = range(height)[y]
        return range(line, line + 1), 0
    wanted = range(height)[y]
    # Reading parts takes one piece per image, so a large one is not faster than the whole.
    if wanted.step == 1 and len(wanted) * 4 <= height:
        return wanted, EVERYTHING
    return range(height), EVERYTHING if wanted == range(height) else y


def _is_whole(index: slice, size: int) -> bool:
    return range(size)[index] == range(size)
