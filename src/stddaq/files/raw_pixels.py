"""The pixels of one raw file: HDF5 says where a chunk is stored, `preadv` copies it to where it is wanted.

HDF5 itself copies a block of images that goes to every N-th image of an array element by element
(https://github.com/h5py/h5py/issues/1597), and holds one lock for all threads. Images of bitshuffle with LZ4
are decoded without that lock. Other filters and layouts are read through HDF5.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import h5py
import hdf5plugin  # noqa: F401  (registers the filters of compressed images)
import numpy as np

from stddaq.errors import CompressionError, FileLayoutError
from stddaq.files.compressed_chunks import FILTERS
from stddaq.files.opening import damage_named, open_file
from stddaq.files.raw_rows import Origin, RawRows
from stddaq.files.sources import ImagesMissingError, check_run_id
from stddaq.text import mismatch
from stddaq.wire.compression import decompress_bitshuffle_lz4_into
from stddaq.wire.std_daq import image_metadata_pb2 as pb

Job = Callable[[], None]

# HDF5 is asked for the places of so many chunks at once: opening the file takes 0.6 ms, a chunk 2 us.
CHUNKS_AHEAD = 512
# Linux limits the pieces of one preadv.
MAX_PIECES = 1024
# That decode images; reading needs none.
MAX_THREADS = 8
_UNKNOWN, _ABSENT = -2, -1
_BITSHUFFLE, _BITSHUFFLE_LZ4 = FILTERS[pb.h5bitshuffle_lz4][0], 2


@dataclass(frozen=True, slots=True)
class _Layout:
    """How images are stored.

    Attributes:
        is_chunked: in chunks of whole images that are read without HDF5.
        is_decoded: each image compressed by bitshuffle with LZ4.
    """

    chunk_images: int = 1
    is_chunked: bool = False
    is_decoded: bool = False

    @classmethod
    def of(cls, data: h5py.Dataset) -> _Layout:
        # The address of a chunk counts from the end of a user block.
        if data.chunks is None or data.chunks[1:] != data.shape[1:] or data.file.userblock_size:
            return cls()
        creation = data.id.get_create_plist()
        filters = [creation.get_filter(i) for i in range(creation.get_nfilters())]
        if not filters:
            return cls(data.chunks[0], is_chunked=True)
        code, _flags, options, _name = filters[0]
        is_lz4 = code == _BITSHUFFLE and len(options) in (2, 5) and options[-1] == _BITSHUFFLE_LZ4
        is_decoded = is_lz4 and len(filters) == 1 and data.chunks[0] == 1
        return cls(data.chunks[0], is_chunked=is_decoded, is_decoded=is_decoded)


class _StoredFile:
    """One open file: its layout, and of each chunk the address, stored bytes and filter mask."""

    def __init__(self, path: Path) -> None:
        """Raises `FileLayoutError`."""
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        except FileNotFoundError as error:
            raise ImagesMissingError(f"{path}: is missing, no such file") from error
        except OSError as error:
            raise FileLayoutError(f"{path}: cannot be read: {error.strerror or error}") from error
        weakref.finalize(self, os.close, self.fd)
        self.layout: _Layout | None = None
        self.chunks = np.full((0, 3), _UNKNOWN, np.int64)

    def unknown_chunks(self, rows: np.ndarray, n_rows: int) -> np.ndarray:
        """Return the chunks (m,) of `rows`, and some more of `n_rows`, whose places are not known."""
        assert self.layout is not None
        if not self.layout.is_chunked or not len(rows):
            return np.empty(0, np.int64)
        n_chunks = -(-n_rows // self.layout.chunk_images)
        chunks = self.chunks
        if len(chunks) < n_chunks:
            grown = np.full((n_chunks, 3), _UNKNOWN, np.int64)
            grown[: len(chunks)] = chunks
            self.chunks = chunks = grown
        wanted = np.unique(rows // self.layout.chunk_images)
        wanted = wanted[chunks[wanted, 0] == _UNKNOWN]
        if not len(wanted):
            return wanted
        return np.union1d(wanted, np.arange(wanted[0], min(n_chunks, wanted[0] + CHUNKS_AHEAD)))

    def locate(self, data: h5py.Dataset, wanted: np.ndarray) -> None:
        """Get the places of the chunks `wanted` (m,). Threads may do the same at once."""
        assert self.layout is not None
        place_of, chunks = data.id.get_chunk_info_by_coord, self.chunks
        for chunk in wanted.tolist():
            info = place_of((chunk * self.layout.chunk_images, 0, 0))
            chunks[chunk, 1:] = info.size, info.filter_mask
            # The address last: another thread may read it now.
            chunks[chunk, 0] = _ABSENT if info.byte_offset is None else info.byte_offset


class RawPixels:
    """The images of a raw file, whose rows have been read. For threads, and for processes after a fork.

    Attributes:
        rows: what the file holds; replaced by the same rows and more while it grows.
    """

    def __init__(self, rows: RawRows) -> None:
        """Raises `FileLayoutError`."""
        self.rows = rows
        self._stored = _StoredFile(rows.path)

    @property
    def path(self) -> Path:
        """Return the path of the file."""
        return self.rows.path

    @property
    def layout(self) -> _Layout:
        """Return how images are stored. Raises `FileLayoutError`."""
        return self._ready(np.empty(0, np.int64)).layout or _Layout()

    def not_stored(self, rows: np.ndarray) -> np.ndarray:
        """Return those of the images `rows` (m,) whose pixels are not within the file. Reads no pixels.

        None of a file that is only read through HDF5. Raises `FileLayoutError`.
        """
        stored = self._ready(rows)
        if stored.layout is None or not stored.layout.is_chunked:
            return rows[:0]
        chunks, first_in_chunk = np.divmod(rows, stored.layout.chunk_images)
        height, width = self.rows.image_shape
        address, size = stored.chunks[chunks, 0], stored.chunks[chunks, 1]
        if not stored.layout.is_decoded:
            size = (first_in_chunk + 1) * height * width * self.rows.dtype.itemsize
        return rows[(address < 0) | (address + size > os.fstat(stored.fd).st_size)]

    def read_known(self, row: int, out: np.ndarray) -> bool:
        """Copy one image to `out`, C-contiguous; return False if its place is not known, which `jobs` finds.

        Raises `FileLayoutError`.
        """
        stored = self._stored
        layout, known = stored.layout, stored.chunks
        if layout is None or not layout.is_chunked or not out.size:
            return False
        chunk, first = divmod(row, layout.chunk_images)
        if chunk >= len(known) or (address := int(known[chunk, 0])) < 0:
            return False
        if layout.is_decoded:
            self._decode(stored, chunk, out, range(len(out)))
        else:
            self._copy(stored, [out.data.cast("B")], address + first * out.nbytes)
        return True

    def jobs(self, rows: np.ndarray, out: np.ndarray, places: np.ndarray, lines: range) -> Iterator[Job]:
        """Return calls that copy `lines` of the images `rows` (m,) to `out[places]`, C-contiguous.

        They may run in several threads. They and this raise `FileLayoutError`.
        """
        stored = self._ready(rows)
        layout = stored.layout or _Layout()
        if not layout.is_chunked:
            yield lambda: self._read_by_hdf5(rows, out, places, lines)
            return
        chunks, first_in_chunk = np.divmod(rows, layout.chunk_images)
        absent = np.flatnonzero(stored.chunks[chunks, 0] < 0)
        if len(absent):
            raise FileLayoutError(f"{self.path}: is damaged: no pixels are stored for row {rows[absent[0]]}")
        if layout.is_decoded:
            for chunk, place in zip(chunks.tolist(), places.tolist(), strict=True):
                yield partial(self._decode, stored, chunk, out[place], lines)
            return
        height, width = self.rows.image_shape
        line_bytes = width * self.rows.dtype.itemsize
        offsets = stored.chunks[chunks, 0] + (first_in_chunk * height + lines.start) * line_bytes
        yield from self._copies(stored, offsets, out, places)

    def _copies(
        self, stored: _StoredFile, offsets: np.ndarray, out: np.ndarray, places: np.ndarray
    ) -> Iterator[Job]:
        """Return one call for each stretch of the file."""
        flat, size = out.data.cast("B"), out[0].nbytes
        ends = (np.flatnonzero(np.diff(offsets) != size) + 1).tolist()
        targets = (places * size).tolist()
        for start, stop in zip([0, *ends], [*ends, len(offsets)], strict=True):
            for first in range(start, stop, MAX_PIECES):
                wanted = targets[first : min(stop, first + MAX_PIECES)]
                pieces = [flat[target : target + size] for target in wanted]
                yield partial(self._copy, stored, pieces, int(offsets[first]))

    def _copy(self, stored: _StoredFile, pieces: list[memoryview], offset: int) -> None:
        left = sum(map(len, pieces))
        while True:
            n_read = os.preadv(stored.fd, pieces, offset)
            left, offset = left - n_read, offset + n_read
            if not left:
                return
            if not n_read:
                expected, got = f"pixels at byte {offset}", "the end of the file"
                raise ImagesMissingError(mismatch(f"{self.path}: is short", expected, got))
            while n_read >= len(pieces[0]):
                n_read -= len(pieces.pop(0))
            pieces[0] = pieces[0][n_read:]

    def _decode(self, stored: _StoredFile, chunk: int, image: np.ndarray, lines: range) -> None:
        offset, size, mask = stored.chunks[chunk].tolist()
        blob = bytearray(size)
        self._copy(stored, [memoryview(blob)], offset)
        whole = len(lines) == self.rows.image_shape[0]
        target = image if whole else np.empty(self.rows.image_shape, self.rows.dtype)
        try:
            if not mask:
                decompress_bitshuffle_lz4_into(blob, target)
            elif size == target.nbytes:
                target[...] = np.frombuffer(blob, target.dtype).reshape(target.shape)
            else:
                raise CompressionError(mismatch("chunk", f"{target.nbytes} bytes", str(size)))
        except CompressionError as error:
            raise FileLayoutError(f"{self.path}: is damaged: row {chunk}: {error}") from error
        if not whole:
            image[...] = target[lines.start : lines.stop]

    def _read_by_hdf5(self, rows: np.ndarray, out: np.ndarray, places: np.ndarray, lines: range) -> None:
        with open_file(self.path, allow_unclosed=True) as opened, damage_named(self.path):
            self._check_rows(opened.file, rows)
            data = self._dataset(opened.file, "data")
            ends = np.flatnonzero(np.diff(rows) != 1) + 1
            for part, to in zip(np.split(rows, ends), np.split(places, ends), strict=True):
                out[to] = data[int(part[0]) : int(part[-1]) + 1, lines.start : lines.stop]

    def _ready(self, rows: np.ndarray) -> _StoredFile:
        """Return the file with its layout, and the places of all chunks of `rows`."""
        stored = self._stored
        if stored.layout and not len(stored.unknown_chunks(rows, self.rows.n_rows)):
            return stored
        with open_file(self.path, allow_unclosed=True) as opened, damage_named(self.path):
            stored = self._current(opened.file)
            # metadata before data: the file may grow now.
            self._check_rows(opened.file, rows)
            data = self._dataset(opened.file, "data")
            stored.layout = stored.layout or _Layout.of(data)
            wanted = stored.unknown_chunks(rows, self.rows.n_rows)
            if len(wanted):
                n = stored.layout.chunk_images
                self._check_rows(opened.file, np.array([wanted[0] * n, (wanted[-1] + 1) * n - 1]))
                stored.locate(data, wanted)
        self._stored = stored
        return stored

    def _current(self, file: h5py.File) -> _StoredFile:
        """Return the open file, or the one that has replaced it: a writer shortens its file when it ends."""
        if os.path.sameopenfile(file.id.get_vfd_handle(), self._stored.fd):
            return self._stored
        stored = _StoredFile(self.path)
        if self.rows.origin.run_id is None or not os.path.sameopenfile(file.id.get_vfd_handle(), stored.fd):
            raise FileLayoutError(f"{self.path}: was replaced after it was opened")
        return stored

    def _check_rows(self, file: h5py.File, rows: np.ndarray) -> None:
        """Check that the file is of the same run, and holds the images that its rows were read for."""
        metadata, run_id = self._dataset(file, "metadata"), self.rows.origin.run_id
        check_run_id(self.path, Origin.of(metadata.parent).run_id, [run_id] if run_id else [], self.path)
        if not len(rows):
            return
        first = int(rows.min())
        expected = self.rows.image_ids[first : int(rows.max()) + 1]
        if not np.array_equal(metadata[first : first + len(expected)]["image_id"], expected):
            raise FileLayoutError(f"{self.path}: holds other images than when it was opened")

    def _dataset(self, file: h5py.File, name: str) -> h5py.Dataset:
        found = file.get(f"{self.rows.group}/{name}")
        if not isinstance(found, h5py.Dataset):
            raise FileLayoutError(mismatch(str(self.path), f"a dataset {name}", "none"))
        return found


def read_images(
    raw_files: Sequence[RawPixels],
    files: np.ndarray,
    rows: np.ndarray,
    out: np.ndarray,
    places: np.ndarray,
    lines: range,
) -> None:
    """Copy `lines` of the images in `rows` (m,) of `files` (m,), indices of `raw_files`, to `out[places]`.

    Raises `FileLayoutError`.
    """
    if not out.size:
        return
    copies: list[Job] = []
    decodings: list[Job] = []
    for number in np.unique(files).tolist():
        raw, mine = raw_files[number], np.flatnonzero(files == number)
        jobs = list(raw.jobs(rows[mine], out, places[mine], lines))
        (decodings if raw.layout.is_decoded else copies).extend(jobs)
    for copy in copies:
        copy()
    n_threads = min(MAX_THREADS, len(decodings), len(os.sched_getaffinity(0)))
    if n_threads < 2:
        for decode in decodings:
            decode()
        return
    with ThreadPoolExecutor(n_threads) as threads:
        for done in threads.map(lambda job: job(), decodings):
            assert done is None
