"""Images of a virtual dataset, read from the raw files that it shows.

Handlers and tiled read master and published images files so: HDF5 copies blocks of images of several
writers element by element (https://github.com/h5py/h5py/issues/1597), and shows fill values for what it does
not find.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from h5py import h5s

from stddaq.errors import FileLayoutError
from stddaq.files.nexus import DATA
from stddaq.files.opening import damage_named, open_file
from stddaq.files.raw_pixels import RawPixels, read_images
from stddaq.files.raw_rows import read_raw_file
from stddaq.files.sources import ImagesMissingError, check_sources
from stddaq.files.virtual import mappings_of
from stddaq.text import mismatch

# HDF5 copies so much as fast as raw files are opened.
SMALL_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class _Part:
    """Images of one raw file: rows (m,), and places (m,) among the images that were asked for."""

    path: Path
    dataset: str
    rows: np.ndarray
    places: np.ndarray


class VirtualImages:
    """The images (n, height, width) of a file, whose raw files may be growing; opened for each call.

    Unlike a plain HDF5 reader it raises an error when a raw file is missing or short, or holds other images.
    """

    def __init__(self, path: Path, dataset: str) -> None:
        self._path, self._dataset = path, dataset

    def check(self, start: int, stop: int | None) -> tuple[tuple[int, ...], np.dtype]:
        """Check images `start` to `stop` (not included; None: to the end). Return shape and type of all.

        Raises `FileLayoutError`, which is an `ImagesMissingError` if images are not there.
        """
        with open_file(self._path, allow_unclosed=True, as_growing=True) as opened:
            images = self._checked(opened.file, start, stop)
            return images.shape, images.dtype

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return images `start` to `stop` (not included). Raises `FileLayoutError`."""
        if stop <= start:
            # HDF5 2.0 refuses to read nothing from more than 50 mappings.
            (_, *shape), dtype = self.check(start, start)
            return np.empty((0, *shape), dtype)
        # HDF5 shows unclosed raw files only through a file that is opened like them.
        with open_file(self._path, allow_unclosed=True, as_growing=True) as opened:
            images = self._checked(opened.file, start, stop)
            with damage_named(self._path):
                parts = _parts(self._path, images, start, stop) if _is_slow(images, stop - start) else None
                if parts is None:
                    return images[start:stop]
                out = np.empty((stop - start, *images.shape[1:]), images.dtype)
        if sum(len(part.rows) for part in parts) != len(out):
            raise ImagesMissingError(
                mismatch(str(self._path), f"a raw file for each of {len(out)} images", "less")
            )
        for part in parts:
            self._read_part(part, out)
        return out

    def _read_part(self, part: _Part, out: np.ndarray) -> None:
        raw = read_raw_file(part.path, allow_unclosed=True)
        found = f"/{raw.detector_name}/data", raw.image_shape, raw.dtype
        if found != (part.dataset, out.shape[1:], out.dtype):
            expected = f"{part.dataset} {out.shape[1:]} {out.dtype}"
            raise FileLayoutError(mismatch(str(part.path), expected, f"{found[0]} {found[1]} {found[2]}"))
        if part.rows.max() >= raw.n_rows:
            raise ImagesMissingError(
                mismatch(f"{part.path}: is short", f"{part.rows.max() + 1} images", str(raw.n_rows))
            )
        files = np.zeros(len(part.rows), np.int64)
        read_images([RawPixels(raw)], files, part.rows, out, part.places, range(out.shape[1]))

    def _checked(self, file: h5py.File, start: int, stop: int | None) -> h5py.Dataset:
        images = file.get(self._dataset)
        if not isinstance(images, h5py.Dataset) or images.ndim != 3:
            raise FileLayoutError(mismatch(str(self._path), f"images {self._dataset}", "none"))
        if stop is not None and stop > images.shape[0]:
            raise ImagesMissingError(mismatch(str(self._path), f"{stop} images", str(images.shape[0])))
        check_sources(self._path, images, start, stop)
        return images


def stored_rows(path: Path, dataset: str = DATA) -> list[tuple[Path, np.ndarray, np.ndarray]]:
    """Return where the images of a file are stored: raw file, rows (m,) in it, places (m,) in the file.

    Raises `FileLayoutError`.
    """
    with open_file(path) as opened, damage_named(path):
        images = opened.file.get(dataset)
        parts = None
        if isinstance(images, h5py.Dataset) and images.is_virtual:
            parts = _parts(path, images, 0, images.shape[0])
    if parts is None:
        raise FileLayoutError(mismatch(str(path), f"images {dataset} of raw files", "others"))
    return [(part.path, part.rows, part.places) for part in parts]


def _is_slow(images: h5py.Dataset, n: int) -> bool:
    """Return whether HDF5 would copy `n` images element by element."""
    n_bytes = n * int(np.prod(images.shape[1:])) * images.dtype.itemsize
    return images.is_virtual and n > 1 and n_bytes > SMALL_BYTES


def _parts(path: Path, images: h5py.Dataset, start: int, stop: int) -> list[_Part] | None:
    """Return where images `start` to `stop` are stored; None if another kind of file is shown."""
    found: list[_Part] = []
    for mapping in mappings_of(images):
        (first, *_), (last, *_) = mapping.places.get_select_bounds()
        if first >= stop or last < start:
            continue
        if mapping.file == ".":
            return None
        places, rows = _first_indices(mapping.places), _first_indices(mapping.rows)
        if len(places) != len(rows):
            return None
        inside = (places >= start) & (places < stop)
        if not inside.any():
            continue
        found.append(_Part(path.parent / mapping.file, mapping.dataset, rows[inside], places[inside] - start))
    return found


def _first_indices(space: h5s.SpaceID) -> np.ndarray:
    """Return the indices (m,) along the first axis that are selected; each selects whole images."""
    if space.get_select_type() == h5s.SEL_ALL:
        return np.arange(space.shape[0])
    if space.is_regular_hyperslab():
        (start, *_), (step, *_), (count, *_), (block, *_) = space.get_regular_hyperslab()
        return (start + step * np.arange(count)[:, None] + np.arange(block)).ravel()
    blocks = space.get_select_hyper_blocklist()[:, :, 0].astype(np.int64)
    return np.sort(np.concatenate([np.arange(first, last + 1) for first, last in blocks]))
