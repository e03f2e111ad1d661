"""The images of a run as they are exported, and what the writers of all formats have in common."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from stddaq.files.id_ranges import id_ranges
from stddaq.files.joined_runs import joined_master, n_parts_of
from stddaq.files.reading import LostImagesError, Run, open_run
from stddaq.text import mismatch
from stddaq.wire.std_daq import image_metadata_pb2 as pb

# What happens with overwritten and failed images, which have no pixels.
Losses = Literal["error", "fill", "drop"]
_SHOWN_RANGES = 5


class Source:
    """The images of a run in order. Damaged ones have the pixels that came.

    Attributes:
        run: without the lost images, if they are dropped.
        lost: (n,) bool, images that are filled.
    """

    def __init__(self, run: Run, losses: Losses) -> None:
        self.run = run
        self.lost = _lost(run) if losses == "fill" else np.zeros(len(run), bool)
        self._losses = losses

    def __len__(self) -> int:
        return len(self.run)

    @property
    def image_bytes(self) -> int:
        """Return the bytes of an image in memory."""
        return max(1, int(np.prod(self.run.image_shape)) * self.run.dtype.itemsize)

    def images(self, first: int, end: int) -> np.ndarray:
        """Return images `first` to `end` (not included). Lost ones are filled. Raises `FileLayoutError`."""
        return np.ma.filled(self.run.images[first:end])

    @property
    def identity(self) -> str:
        """Return what tells these images from all others."""
        files = [(raw.path.name, raw.path.stat().st_size) for raw in self.run.raw_files]
        times = [raw.path.stat().st_mtime_ns for raw in self.run.raw_files]
        status = zlib.crc32(np.ascontiguousarray(self.run.status).data)
        return repr((self.run.identity, self._losses, status, files, times))


def open_sources(path: Path, prefix: str | None, losses: Losses) -> list[Source]:
    """Return the images of a run, or those of each part of a run of several drivers.

    Image i of all parts has the same id: an image that is dropped from one part is dropped from all.
    Raises `LostImagesError` for lost images that are an error, `FileLayoutError`.
    """
    master = joined_master(path, prefix)
    parts = [None] if master is None else range(1, n_parts_of(master) + 1)
    masked = "mask" if losses == "fill" else "raise"
    runs = [open_run(path, prefix, damaged=True, losses=masked, part=part) for part in parts]
    if losses == "error":
        for run in runs:
            _check_not_lost(run)
    if losses == "drop":
        kept = ~np.logical_or.reduce([_lost(run) for run in runs])
        runs = [run.select(rows=kept) for run in runs]
    return [Source(run, losses) for run in runs]


def _lost(run: Run) -> np.ndarray:
    status = run.status
    return (status != pb.good_image) & (status != pb.missing_packets)


def _check_not_lost(run: Run) -> None:
    lost = _lost(run)
    if lost.any():
        ids = id_ranges(run.image_ids[lost])
        got = f"{ids.number}, image ids {ids.shown(_SHOWN_RANGES)}"
        advice = "--losses fill or --losses drop exports the others"
        raise LostImagesError(mismatch(f"{run.path}: overwritten or failed images", "none", got, advice))


class Writer(Protocol):
    """Writes images in one format into an incomplete file or directory. A context manager.

    Attributes:
        step: images are written from a multiple of it, so that a block holds whole chunks.
    """

    step: int

    def __init__(self, path: Path, source: Source, n_done: int) -> None:
        """Create `path`, or continue it after `n_done` images. Raises `OSError` if it cannot be continued."""
        ...

    def write(self, first: int, end: int) -> None:
        """Write images `first` to `end` (not included). They are in the file when this returns."""
        ...

    def close(self) -> None:
        """Complete what was written so far."""
        ...


# Opens an exported file, or directory; the result reads images `first` to `end` (not included).
Read = Callable[[int, int], np.ndarray]


class Reader(Protocol):
    """Reads what a `Writer` has written, by the format's own library. A context manager."""

    def __enter__(self) -> Read: ...
    def __exit__(self, *error: Any) -> Any: ...


def chunk_images(image_bytes: int, chunk_bytes: int) -> int:
    """Return how many images make a chunk."""
    return max(1, chunk_bytes // image_bytes)
