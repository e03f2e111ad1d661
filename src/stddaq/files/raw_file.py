"""The raw file of one writer, which readers may open at any time and which survives a crash.

One `pwritev` copies uncompressed pixels from the ring buffer into chunks that HDF5 has allocated and never
touches itself; direct chunk write stores compressed images, without compressing again. `flush` makes rows
visible to SWMR readers: first `data`, then `metadata`, so that every visible row has its pixels.

Layout (std_daq): group `/<detector_name>` with `data` (n, H, W) and `metadata` (n,) of `METADATA_DTYPE`; and,
only here, `epochs` (m,) of `EPOCHS_DTYPE`.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import cast

import h5py
import numpy as np
from h5py import h5d, h5p, h5s, h5t, h5z  # pyright: ignore[reportAttributeAccessIssue]

from stddaq.config import DetectorConfig
from stddaq.dataplane.metadata import compression_of
from stddaq.errors import CompressionError, FileLayoutError
from stddaq.files.compressed_chunks import FILTERS, ChunkMaker
from stddaq.files.hdf5_calls import hdf5_calls
from stddaq.files.swmr import GrowingRows, close_swmr_file, open_swmr_file
from stddaq.new_file import NewFile

METADATA_DTYPE = np.dtype([("image_id", "<u8"), ("status", "<u8")])
CHECKSUM_DTYPE = np.dtype([*METADATA_DTYPE.descr, ("checksum", "<u8")])
EPOCHS_DTYPE = np.dtype([("first_row", "<u8"), ("epoch", "<u8")])
# Filter mask of a chunk that skipped the only filter.
FILTER_SKIPPED = 1
# The unused end of the last chunk may be this large: with the HDF5 structures (about 150 KiB) a file stays
# within 5 % + 1 MiB of its pixels.
SLACK_FRACTION = 0.04
SLACK_BYTES = 512 * 1024
# Disk space in reserve, so that images put before the disk was full can still be declared in the file.
RESERVE_BYTES = 512 * 1024
# Linux limits the pieces of one pwritev.
MAX_PIECES = 1024


@dataclass(frozen=True, slots=True)
class RawLayout:
    """The layout of the raw files of a detector and source."""

    detector_name: str
    image_shape: tuple[int, int]
    dtype: np.dtype
    block_bytes: int
    compression: int
    """`ImageMetadataCompression` of the images as they come."""
    has_checksums: bool = False

    def __post_init__(self) -> None:
        if self.compression:
            # It registers the filters. Not at the top: it takes 0.7 MB of memory.
            import hdf5plugin  # noqa: F401

    @classmethod
    def of(cls, config: DetectorConfig, suffix: str) -> RawLayout:
        """Return the layout for images from the ring buffer `suffix`."""
        return cls(
            config.detector_name,
            config.image_shape,
            config.dtype,
            config.gpfs_block_size,
            compression_of(suffix),
            config.image_checksums,
        )

    @property
    def row_dtype(self) -> np.dtype:
        """Return the type of a row of `metadata`."""
        return CHECKSUM_DTYPE if self.has_checksums else METADATA_DTYPE

    @property
    def image_bytes(self) -> int:
        """Return the bytes of an uncompressed image."""
        return self.image_shape[0] * self.image_shape[1] * self.dtype.itemsize

    def chunk_images(self, expected_images: int) -> int:
        """Return the images per chunk of a file for `expected_images` (0: unknown)."""
        if self.compression:
            return 1
        largest = max(1, self.block_bytes // self.image_bytes)
        if not expected_images:
            return largest
        n_chunks = -(-expected_images // largest)
        if not self.wastes(expected_images, largest):
            return largest
        while self.wastes(expected_images, -(-expected_images // n_chunks)):
            n_chunks += 1
        return -(-expected_images // n_chunks)

    def wastes(self, n_images: int, chunk_images: int) -> bool:
        """Return whether the last chunk of a file of `n_images` would make the file too large."""
        unused = -n_images % chunk_images * self.image_bytes
        return unused > SLACK_FRACTION * n_images * self.image_bytes + SLACK_BYTES


class RawFile:
    """A raw file being written. Not thread-safe; one process per file.

    `put` appends images, `declare` gives them id and status, `flush` makes them visible. Errors of the file
    system are raised as `OSError`; what was flushed before stays readable.

    Attributes:
        n_images: images put so far, which is the row of the next one.
    """

    def __init__(
        self,
        new: NewFile,
        layout: RawLayout,
        attributes: Mapping[str, object],
        expected_images: int = 0,
    ) -> None:
        """Write into the empty file `new`, and begin SWMR. Raises `OSError`."""
        self.path, self._new = new.path, new
        self._layout = layout
        self._attributes = dict(attributes)
        self._image_bytes = layout.image_bytes
        self._chunk_images = layout.chunk_images(expected_images)
        self._chunk_offsets: list[int] = []
        self._chunks = ChunkMaker(layout.compression, layout.image_shape, layout.dtype)
        self._declared: list[tuple[int, ...]] = []
        self.n_images = 0
        self._extent = 0
        self._is_closed = False
        self._file = open_swmr_file(new)
        self._reserve: int | None = None
        try:
            self._reserve = _reserve_space(new)
            with hdf5_calls:
                self._lay_out()
            self._fd: int = self._file.id.get_vfd_handle()
        except BaseException:
            self._release_reserve()
            with contextlib.suppress(OSError, RuntimeError):
                self._file.close()
            raise

    @classmethod
    def create(
        cls,
        path: Path,
        layout: RawLayout,
        attributes: Mapping[str, object],
        *,
        expected_images: int = 0,
        overwrite: bool = False,
        roots: Sequence[Path] = (),
    ) -> RawFile:
        """Create a file, below `roots` if there are any, and begin SWMR.

        Raises `FileExistsError`, unless `overwrite`, `OutsideRootsError` and `OSError`.
        """
        with NewFile.create(path, overwrite=overwrite, roots=roots).removed_on_error() as new:
            return cls(new, layout, attributes, expected_images)

    def _lay_out(self) -> None:
        layout = self._layout
        group = self._file.create_group(layout.detector_name)
        for name, value in self._attributes.items():
            group.attrs[name] = value
        creation = h5p.create(h5p.DATASET_CREATE)
        creation.set_chunk((self._chunk_images, *layout.image_shape))
        if layout.compression:
            filter_id, options = FILTERS[layout.compression]
            creation.set_filter(filter_id, h5z.FLAG_MANDATORY, options)
        else:
            creation.set_alloc_time(h5d.ALLOC_TIME_EARLY)
            creation.set_fill_time(h5d.FILL_TIME_NEVER)
        access = h5p.create(h5p.DATASET_ACCESS)
        access.set_chunk_cache(1, 0, 0.0)  # Nothing is read or written through this handle.
        space = h5s.create_simple((0, *layout.image_shape), (h5s.UNLIMITED, *layout.image_shape))
        self._data = h5d.create(
            group.id, b"data", h5t.py_create(layout.dtype), space, dcpl=creation, dapl=access
        )
        self._metadata = GrowingRows(group, "metadata", layout.row_dtype)
        self._epochs = GrowingRows(group, "epochs", EPOCHS_DTYPE)
        self._file.swmr_mode = True

    @property
    def n_visible(self) -> int:
        """Return the number of rows that other processes can read."""
        return self._metadata.n_rows

    def put(self, images: Sequence[memoryview | None], uncompressed: Collection[int] = ()) -> dict[int, str]:
        """Append images: uncompressed slots, or compressed bytes, which are not compressed again.

        None is a row without pixels, which reads as zeros: an overwritten image. `uncompressed` are the
        positions in `images` of those that a compressor left uncompressed. If the file system fails midway,
        `n_images` counts the complete ones. Return the positions of compressed images that HDF5 could not
        read, and why: their rows are without pixels.
        """
        try:
            if self._layout.compression:
                return self._put_compressed(images, uncompressed)
            self._put_uncompressed([self._zeros() if image is None else image for image in images])
            return {}
        except (OSError, RuntimeError):
            # Before HDF5 writes again: rows that it once failed to write are lost, although it reports them.
            self._release_reserve()
            raise

    def _put_uncompressed(self, images: Sequence[memoryview]) -> None:
        # One system call writes all images that fit into the chunk: 3 us + the kernel's copy.
        first, chunk_images = 0, self._chunk_images
        while first < len(images):
            chunk, row = divmod(self.n_images, chunk_images)
            if chunk == len(self._chunk_offsets):
                self._allocate_chunk()
            n = min(len(images) - first, chunk_images - row, MAX_PIECES)
            self._write(images[first : first + n], self._chunk_offsets[chunk] + row * self._image_bytes)
            first += n

    def _extend(self, n_rows: int) -> None:
        """Make room for `n_rows` rows, never fewer than before: HDF5 would free chunks beyond the extent."""
        if n_rows > self._extent:
            with hdf5_calls:
                self._data.set_extent((n_rows, *self._layout.image_shape))
            self._extent = n_rows

    def _allocate_chunk(self) -> None:
        # The extent ends at the first image of the new chunk, not at the chunk's end, so that readers never
        # see rows without images; it is flushed together with the image.
        self._extend(self.n_images + 1)
        chunk = self._data.get_chunk_info_by_coord((self.n_images, 0, 0))
        if chunk.byte_offset is None:
            raise FileLayoutError(f"{self.path}: HDF5 allocated no space for a chunk")
        self._chunk_offsets.append(chunk.byte_offset)

    def _write(self, images: Sequence[memoryview], offset: int) -> None:
        size = len(images) * self._image_bytes
        written = os.pwritev(self._fd, images, offset)
        while written < size:
            self.n_images += written // self._image_bytes
            images = images[written // self._image_bytes :]
            offset += written - written % self._image_bytes
            size = len(images) * self._image_bytes
            # The first try may write less; only the second reports a full disk.
            partial = images[0][written % self._image_bytes :]
            written = written % self._image_bytes
            written += os.pwritev(self._fd, [partial, *images[1:]], offset + written)
        self.n_images += len(images)

    def _put_compressed(
        self, images: Sequence[memoryview | None], uncompressed: Collection[int]
    ) -> dict[int, str]:
        self._extend(self.n_images + len(images))
        store = self._data.write_direct_chunk
        unreadable: dict[int, str] = {}
        for position, image in enumerate(images):
            # Without a stored chunk HDF5 reads the fill value, zero.
            if image is not None:
                place = (self.n_images, 0, 0)
                try:
                    content = image if position in uncompressed else self._chunks.chunk(image)
                except CompressionError as error:
                    # Not the error itself: the frames of its traceback would keep the slot, and so the ring.
                    unreadable[position] = str(error)
                else:
                    with hdf5_calls:
                        store(place, content, FILTER_SKIPPED if position in uncompressed else 0)
            self.n_images += 1
        return unreadable

    def blank(self, row: int) -> None:
        """Remove the unflushed pixels of `row`, which turned out to be those of another image."""
        if self._layout.compression:
            with hdf5_calls:
                self._data.write_direct_chunk((row, 0, 0), self._zeros(), FILTER_SKIPPED)
            return
        chunk, place = divmod(row, self._chunk_images)
        offset = self._chunk_offsets[chunk] + place * self._image_bytes
        written = 0
        while written < self._image_bytes:
            written += os.pwrite(self._fd, self._zeros()[written:], offset + written)

    @staticmethod
    @lru_cache(maxsize=1)
    def _zero_image(image_bytes: int) -> memoryview:
        # Reading untouched anonymous memory is free: the kernel maps one shared page of zeros.
        return memoryview(mmap.mmap(-1, image_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))

    def _zeros(self) -> memoryview:
        return self._zero_image(self._image_bytes)

    def declare(self, rows: Iterable[tuple[int, ...]]) -> None:
        """Set id, status and, if the layout has one, checksum of the next rows, in the order of `put`."""
        self._declared.extend(rows)

    def flush(self) -> None:
        """Make all declared rows visible to other processes: pixels first, then the rows' metadata."""
        if not self._declared:
            return
        n_rows = self._metadata.n_rows + len(self._declared)
        if n_rows > self.n_images:
            raise FileLayoutError(f"{self.path}: {n_rows} rows declared, {self.n_images} images put")
        try:
            self._extend(n_rows)
            with hdf5_calls:
                self._data.flush()
            self._metadata.append(self._declared)
        except (OSError, RuntimeError):
            self._release_reserve()  # Closing needs space as well.
            raise
        self._declared.clear()

    def _release_reserve(self) -> None:
        """Release the reserve for a full disk."""
        reserve, self._reserve = self._reserve, None
        if reserve is not None:
            os.close(reserve)

    def drop_undeclared(self) -> None:
        """Drop images that were put but not declared, because writing failed."""
        self.n_images = self.n_visible + len(self._declared)

    def drop_declared(self) -> list[int]:
        """Drop the rows that could not be made visible. Return their image ids."""
        ids = [row[0] for row in self._declared]
        self._declared.clear()
        self.n_images = self.n_visible
        return ids

    def show_alive(self) -> None:
        """Check that the file is at its path, and touch it: `stddaq repair` sees that it is being written.

        Raise `FileLostError`.
        """
        self._new.check_in_place()
        os.utime(self._new.fd)

    def close(self, epochs: Sequence[tuple[int, int]] = (), *, discard_if_empty: bool = False) -> None:
        """Flush, cut to the exact length, and close; with `discard_if_empty` remove a file without images.

        `epochs` are (first row, epoch) of each restart of the image ids. Raises `OSError`, also when an
        earlier write had failed; rows that were visible stay readable with SWMR.
        """
        try:
            self._finish(epochs)
            if discard_if_empty and not self.n_visible:
                self._new.remove()
        finally:
            self._new.close()

    def _finish(self, epochs: Sequence[tuple[int, int]]) -> None:
        try:
            self.flush()
            with hdf5_calls:
                self._data.set_extent((self.n_visible, *self._layout.image_shape))
            self._metadata.cut()
            if epochs:
                self._epochs.append(epochs)
        finally:
            self._close_file()
        self._new.check_in_place()
        n_images = self.n_visible
        if not self._layout.compression and self._layout.wastes(n_images, self._chunk_images):
            self._trim(epochs)

    def abandon(self) -> None:
        """Close after an error without raising; visible rows stay."""
        with contextlib.suppress(OSError, RuntimeError, ValueError):
            self._close_file()

    def _close_file(self) -> None:
        if self._is_closed:
            return  # A failed close cannot be repeated: https://github.com/h5py/h5py/issues/2160
        self._is_closed = True
        self._release_reserve()
        # HDF5 closes a file only after its last open object.
        del self._data
        self._metadata.close()
        self._epochs.close()
        close_swmr_file(self._file, self.path)

    def _trim(self, epochs: Sequence[tuple[int, int]]) -> None:
        """Rewrite a run that ended early in chunks of the right size, so that small runs make small files.

        Only files below about 300 MB are rewritten, whose last chunk is the larger part. If the disk has no
        room for a second copy, the first stays.
        """
        with contextlib.suppress(OSError), self._new.replacing() as temporary:
            trimmed = RawFile(temporary, self._layout, self._attributes, self.n_visible)
            try:
                self._copy_into(trimmed)
                trimmed._finish(epochs)
            except BaseException:
                trimmed.abandon()
                raise

    def _copy_into(self, trimmed: RawFile) -> None:
        with h5py.File(self._new.opened, "r", locking=False) as file:
            rows = cast("h5py.Dataset", file[f"{self._layout.detector_name}/metadata"])
            trimmed.declare(rows[:].tolist())
        for chunk, offset in enumerate(self._chunk_offsets):
            n_images = min(self._chunk_images, self.n_visible - chunk * self._chunk_images)
            trimmed._put_from(self._new.fd, offset, n_images)

    def _put_from(self, source: int, offset: int, n_images: int) -> None:
        """Append images that are contiguous in another file; the kernel copies them."""
        while n_images:
            chunk, row = divmod(self.n_images, self._chunk_images)
            if chunk == len(self._chunk_offsets):
                self._allocate_chunk()
            n = min(n_images, self._chunk_images - row)
            target, left = self._chunk_offsets[chunk] + row * self._image_bytes, n * self._image_bytes
            while left:
                copied = os.copy_file_range(source, self._fd, left, offset, target)
                if not copied:
                    raise OSError(errno.EIO, "the file is shorter than its images", str(self.path))
                offset, target, left = offset + copied, target + copied, left - copied
            self.n_images += n
            n_images -= n


def _reserve_space(new: NewFile) -> int | None:
    """Open an unnamed file of `RESERVE_BYTES` beside `new`. Raises `OSError` on a full disk."""
    reserve = new.unnamed_beside()
    try:
        os.posix_fallocate(reserve, 0, RESERVE_BYTES)
    except OSError as error:
        os.close(reserve)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        return None  # A limit on the size of files, or a file system without fallocate.
    return reserve
