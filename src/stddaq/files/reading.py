"""`stddaq.open_run`: a recorded or growing run as one array in the order of its images.

Every read checks what it reads: a raw file that is missing, short, of another run or replaced raises an
error that names it, and an image without pixels is never shown as fill values.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote, urlsplit

import numpy as np

from stddaq.errors import FileLayoutError, StdDaqError
from stddaq.files.joined_runs import joined_master, n_parts_of, part_of_master
from stddaq.files.lazy_images import LazyImages
from stddaq.files.names import master_file_name
from stddaq.files.opened_run import Identity, OpenedRun, read_only
from stddaq.files.raw_pixels import RawPixels
from stddaq.files.selection import among_ids, integer, positions_of
from stddaq.files.sources import OtherRunError
from stddaq.text import mismatch, shown, shown_text
from stddaq.wire.std_daq import image_metadata_pb2 as pb

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Losses = Literal["raise", "mask"]
# How often a growing run is read again.
POLL_S = 0.2
_NAMED_IMAGES = 5


class LostImagesError(FileLayoutError):
    """Images were to be read whose pixels are lost or damaged."""


class NoNewImagesError(StdDaqError, TimeoutError):
    """A growing run has had no new image for the time that `follow` waits."""


def open_run(
    path: str | Path,
    prefix: str | None = None,
    *,
    losses: Losses = "raise",
    damaged: bool = False,
    growing: bool = False,
    part: int | None = None,
) -> Run:
    """Open the run of a file (master, raw or exported HDF5, or its URI), or of `prefix` in a directory.

    The default prefix is "file". Reading images that are damaged, overwritten or failed raises
    `LostImagesError`; with `losses="mask"` they are masked. `damaged=True` returns the pixels of damaged
    images as they came. `growing=True` also opens a run that is being recorded: the images whose order cannot
    change any more. `part` (1, 2, ...) opens a part of the master file of several drivers, with the images
    that every part has: image i of each belongs to image i of the others. Its `status` and `account` are
    those of the part.

    Raises `FileLayoutError` that names the file which is missing, short, damaged, of another run, or not
    closed; `TypeError` and `ValueError` for other arguments than these.
    """
    if losses not in ("raise", "mask"):
        raise ValueError(mismatch("losses", '"raise" or "mask"', shown(losses)))
    for name, value in (("damaged", damaged), ("growing", growing)):
        if not isinstance(value, bool):
            raise TypeError(mismatch(name, "True or False", shown(value)))
    if not isinstance(prefix, str | None):
        raise TypeError(mismatch("prefix", "text or None", shown(prefix)))
    found = _path_of(path)
    _check_name(found)
    if prefix is not None:
        _check_name((found if found.is_dir() else found.parent) / master_file_name(prefix))
    if part is not None:
        part = integer("part", part, 1)
        shown_part = part_of_master(joined_master(found, prefix) or found, part)
        opened = OpenedRun(shown_part.raw_files[0], None, growing=False)
        return Run(opened, losses, damaged, shown_part.rows_of(opened.raw_files[0].rows, opened.image_ids))
    try:
        return Run(OpenedRun(found, prefix, growing), losses, damaged)
    except FileLayoutError as error:
        if (master := joined_master(found, prefix)) is not None:
            expected = f"part=1 to part={n_parts_of(master)} of the drivers that recorded it"
            advice = f"open a file of one part, such as {part_of_master(master, 1).raw_files[0]}"
            raise FileLayoutError(mismatch(str(master), expected, "no part", advice)) from error
        raise


class Run:
    """A run open for reading. Threads may share it; processes inherit it by fork, or receive it by pickle.

    Attributes:
        images: the array (n, height, width), read when it is indexed.
        losses: as given to `open_run`.
        damaged: as given to `open_run`.
    """

    def __init__(
        self, opened: OpenedRun, losses: Losses, damaged: bool = False, rows: np.ndarray | None = None
    ) -> None:
        self._opened, self.damaged, self._rows = opened, damaged, rows
        self.losses: Losses = losses
        self.images = LazyImages(self)

    @property
    def path(self) -> Path:
        """Return the path that was opened."""
        return self._opened.path

    @property
    def run_id(self) -> str | None:
        """Return the id of the run; None for files of C++ writers."""
        return self._opened.raw_files[0].rows.origin.run_id

    @property
    def detector_name(self) -> str:
        """Return the name of the detector."""
        return self._opened.raw_files[0].rows.detector_name

    @property
    def raw_files(self) -> Sequence[RawPixels]:
        """Return the raw files by writer."""
        return self._opened.raw_files

    @property
    def image_shape(self) -> tuple[int, int]:
        """Return (height, width) in pixels."""
        return self._opened.raw_files[0].rows.image_shape

    @property
    def dtype(self) -> np.dtype:
        """Return the type of a pixel."""
        return self._opened.raw_files[0].rows.dtype

    @property
    def n_images(self) -> int:
        """Return the number of images."""
        return self._opened.n_images if self._rows is None else len(self._rows)

    def __len__(self) -> int:
        return self.n_images

    @property
    def image_ids(self) -> np.ndarray:
        """Return the ids (n,) uint64 in the order of the images, read-only."""
        return read_only(self._selected(self._opened.image_ids))

    @property
    def status(self) -> np.ndarray:
        """Return the status (n,) uint64: 1 (good), 2 (damaged) or 3 (overwritten or failed), read-only."""
        return read_only(self._selected(self._opened.status))

    @property
    def good(self) -> np.ndarray:
        """Return which images are good, (n,) bool."""
        return self.status == pb.good_image

    @property
    def skipped_ids(self) -> np.ndarray:
        """Return the ids (m,) uint64 between the first and the last image that no image of the run has."""
        ids = np.unique(self._opened.image_ids)
        before = np.flatnonzero(np.diff(ids) > 1)
        gaps = [np.arange(ids[i] + 1, ids[i + 1], dtype=np.uint64) for i in before]
        return np.concatenate(gaps) if gaps else ids[:0]

    @property
    def account(self) -> dict[str, Any] | None:
        """Return the driver's account of the run; None if no master file has it."""
        return self._opened.account

    @property
    def metadata(self) -> dict[str, Any] | None:
        """Return what clients kept with the run (`metadata` of `start`); None if there is nothing."""
        return (self.account or {}).get("metadata")

    @property
    def nexus(self) -> dict[str, Any] | None:
        """Return the metadata by key, each with `value` and `from`; None if no master file has them."""
        return self._opened.nexus

    @property
    def detector_metadata(self) -> np.ndarray | None:
        """Return the detector's own fields (n,), one row for each image; None without a metadata file."""
        rows = self._opened.detector_rows()
        return None if rows is None else self._selected(rows)

    @property
    def timestamps(self) -> np.ndarray | None:
        """Return the camera's clock (n,) datetime64[ns]; None if its metadata have none."""
        rows = self.detector_metadata
        names = () if rows is None else rows.dtype.names or ()
        if rows is None or "global_timestamp_sec" not in names:
            return None
        nanoseconds = rows["global_timestamp_sec"] * np.uint64(10**9) + rows["global_timestamp_ns"]
        return nanoseconds.astype("datetime64[ns]")

    @property
    def images_of_chunks(self) -> int:
        """Return how many images a chunk of each raw file holds together."""
        return sum(raw.layout.chunk_images for raw in self.raw_files)

    def __repr__(self) -> str:
        height, width = self.image_shape
        return f"<run {self.path}: {self.n_images} images {height} x {width} {self.dtype}>"

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        """Do nothing: files are closed when the run and all its parts are released."""

    def select(
        self,
        rows: Any = None,
        *,
        ids: Collection[int] | None = None,
        status: Literal["good"] | None = None,
    ) -> Run:
        """Return a run of some of the images, each once, in the order of this run; nothing is read.

        `rows` is a slice, positions or booleans (n,); `ids` are image ids, which must exist. Their order does
        not matter; `images[[5, 1]]` reads in another order. Raises `LostImagesError` for ids without an
        image, `IndexError` for positions outside the run, and positions and ids that are no integers.
        """
        wanted = np.ones(self.n_images, bool)
        if rows is not None:
            wanted[:] = False
            wanted[positions_of(f"{self.path}: rows", rows, self.n_images)[0]] = True
        if ids is not None:
            found, absent = among_ids(f"{self.path}: ids", ids, self.image_ids)
            if absent:
                expected, got = "images of the given ids", f"no {_listed(absent)}"
                raise LostImagesError(mismatch(str(self.path), expected, got))
            wanted &= found
        if status is not None:
            if status != "good":
                raise ValueError(mismatch("status", '"good"', shown(status)))
            wanted &= self.good
        chosen = np.flatnonzero(wanted)
        return self._part(chosen)

    def partition(self, rank: int, size: int) -> Run:
        """Return part `rank` (from 0) of `size` nearly equal parts, in the order of the images.

        Raises `TypeError` for what is no integer, such as text of the environment, and `ValueError`.
        """
        size = integer("size", size, 1)
        return self.partitions(size)[integer("rank", rank, 0, size - 1)]

    def partitions(self, n: int) -> list[Run]:
        """Return `n` nearly equal parts, cut where chunks end if the run is long enough.

        Raises `TypeError` and `ValueError` as `partition` does.
        """
        n = integer("partitions", n, 1)
        chunks = self.images_of_chunks
        unit = chunks if self._rows is None and chunks * n * 4 <= self.n_images else 1
        cuts = [round(i * self.n_images / n / unit) * unit for i in range(n)] + [self.n_images]
        return [self._part(np.arange(cuts[i], cuts[i + 1])) for i in range(n)]

    def plot_missing(self, figure: Figure | None = None) -> Figure:
        """Draw bad and skipped images by raw file and time into a figure of matplotlib, by default a new one.

        Needs matplotlib. Raises `FileLayoutError`.
        """
        from stddaq.files.plot_missing import plot_missing

        return plot_missing(self, figure)

    @property
    def growing(self) -> bool:
        """Return whether files were not closed when they were last read, and this is the whole run."""
        return self._opened.growing and self._rows is None

    def refresh(self) -> int:
        """Read what a growing run holds now. Return how many images were added.

        Raises `FileLayoutError`, also when ids have stepped back, so that images belong between earlier ones.
        """
        return self._opened.refresh() if self.growing else 0

    def follow(self, timeout: float) -> Iterator[tuple[slice, np.ndarray]]:
        """Read all images, also those to come, until the files are closed: blocks (slice, images).

        Raises `NoNewImagesError` after `timeout` seconds without a new image.
        """
        n_read, since = 0, time.monotonic()
        while True:
            is_last = not self.growing
            if self.n_images > n_read:
                first, n_read = n_read, self.n_images
                for part, images in self._part(np.arange(first, n_read)).images.blocks():
                    yield slice(part.start + first, part.stop + first), images
                since = time.monotonic()
            if is_last:
                return
            if time.monotonic() - since > timeout:
                expected = f"a new image within {timeout:g} s"
                raise NoNewImagesError(mismatch(str(self.path), expected, f"{n_read} images"))
            if not self.refresh() and self.growing:
                time.sleep(POLL_S)

    def check_lost(self, positions: np.ndarray) -> np.ndarray:
        """Return which of the images at `positions` (m,) are lost. Raises `LostImagesError` unless masked."""
        positions = self._places(positions)
        status = self._opened.status[positions]
        lost = status != pb.good_image
        if self.damaged:
            lost &= status != pb.missing_packets
        if self.losses == "raise" and lost.any():
            is_damaged = status == pb.missing_packets
            ids = self._opened.image_ids[positions]
            kinds = {"damaged": lost & is_damaged, "overwritten or failed": lost & ~is_damaged}
            raise LostImagesError(
                mismatch(
                    f"{self.path}: images to read",
                    "good ones",
                    ", ".join(f"{kind} {_listed(ids[of])}" for kind, of in kinds.items() if of.any()),
                    'open the run with losses="mask", or take run.select(status="good")',
                )
            )
        return lost

    def stored_at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the raw file (m,) and the row (m,) of the images at `positions`."""
        rows, files = np.divmod(self._opened.places[self._places(positions)], len(self.raw_files))
        return files, rows

    def stored_if_good(self, position: int) -> tuple[int, int] | None:
        """Return the raw file and the row of the image at `position` (from 0); None if it is not good."""
        place = position if self._rows is None else self._rows[position]
        if self._opened.status[place] != pb.good_image:
            return None
        row, file = divmod(int(self._opened.places[place]), len(self.raw_files))
        return file, row

    @property
    def identity(self) -> tuple[Any, ...]:
        """Return what tells the images of this run from all others, by value."""
        rows = None if self._rows is None else zlib.crc32(self._rows.data)
        return (*self._opened.identity, self.n_images, rows, self.losses, self.damaged)

    def __reduce__(self) -> Any:
        opened = self._opened
        rows: Any = self._rows
        if rows is None and opened.growing:
            rows = np.arange(self.n_images)
        if rows is not None and len(rows) and rows[-1] - rows[0] == len(rows) - 1:
            rows = (int(rows[0]), int(rows[-1]) + 1)
        key = opened.path.absolute(), opened.prefix, opened.growing, opened.identity
        return _restored, (key, self.losses, self.damaged, rows)

    def _part(self, rows: np.ndarray) -> Run:
        return Run(self._opened, self.losses, self.damaged, rows if self._rows is None else self._rows[rows])

    def _places(self, positions: np.ndarray) -> np.ndarray:
        """Return the positions in the whole run."""
        return positions if self._rows is None else self._rows[positions]

    def _selected(self, values: np.ndarray) -> np.ndarray:
        return values if self._rows is None else values[self._rows]


def _restored(key: Any, losses: Losses, damaged: bool, rows: Any) -> Run:
    return Run(_reopened(*key), losses, damaged, np.arange(*rows) if isinstance(rows, tuple) else rows)


# The tasks of a distributed computation bring the same run many times.
@lru_cache(maxsize=4)
def _reopened(path: Path, prefix: str | None, growing: bool, identity: Identity) -> OpenedRun:
    opened = OpenedRun(path, prefix, growing)
    if opened.identity_of_first(identity[1]) != identity:
        raise OtherRunError(mismatch(str(path), "the run that was opened elsewhere", "another one"))
    return opened


def _path_of(path: str | Path) -> Path:
    """Return a path, or the one of a URI file://localhost/... as documents have it."""
    if isinstance(path, str) and path.startswith("file:"):
        parts = urlsplit(path)
        if parts.netloc not in ("", "localhost"):
            raise FileLayoutError(mismatch(path, "a file of this host", f"host {shown(parts.netloc)}"))
        return Path(unquote(parts.path))
    return Path(path)


def _check_name(path: Path) -> None:
    """Raise `FileLayoutError` for a path that the file system refuses, such as one that is too long."""
    try:
        path.exists()
    except OSError as error:
        raise FileLayoutError(f"{shown_text(str(path))}: cannot be read: {error.strerror}") from error


def _listed(ids: np.ndarray | Sequence[int]) -> str:
    more = f" and {len(ids) - _NAMED_IMAGES} more" if len(ids) > _NAMED_IMAGES else ""
    return ", ".join(str(one) for one in ids[:_NAMED_IMAGES]) + more
