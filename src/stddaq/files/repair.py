"""`stddaq repair`: make the file of a killed writer openable, and report its content.

HDF5 refuses a plain open because the superblock still marks the file as being written. Every image that the
writer had flushed is kept; what follows the last flushed row is cut off. A file that has lost flushed images
stays unchanged.

A file is repaired only if no process of this host has it open for writing, none holds its HDF5 lock, and it
stays unchanged for a while. A stopped writer on another host cannot be seen.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from h5py import h5d  # pyright: ignore[reportAttributeAccessIssue]

from stddaq.errors import FileLayoutError
from stddaq.file_lease import is_open_for_writing
from stddaq.files.file_format import FILE_FORMAT
from stddaq.files.opening import DAMAGE, SIGNATURE, Opened, check_is_file, examine, isolated
from stddaq.files.raw_rows import metadata_file_of, metadata_group, raw_file_of, raw_group
from stddaq.text import mismatch

# A writer touches its file twice a second (`RawFile.show_alive`), even if no image comes. A file that was
# changed lately is watched for longer, because a file system may delay its writer.
UNCHANGED_S = 3.0
TOUCHED_WITHIN_S = 1.2
# Older than any difference between the clocks of two hosts.
SURELY_OLD_S = 60.0
# Superblock of version 2 and 3 with 8-byte addresses (HDF5 file format specification, II.B): place of the
# consistency flags and of the end-of-file address, and a lookup3 checksum of all before it.
_VERSION, _ADDRESS_BYTES, _FLAGS, _END_OF_FILE, _CHECKSUM, _SIZE = 8, 9, 11, slice(28, 36), 44, 48


@dataclass(frozen=True, slots=True)
class RepairResult:
    """What `repair` did to a file.

    Attributes:
        n_images: images (rows of metadata) that it holds; None when it is not a raw or metadata file.
        n_cut: images without metadata, never completely flushed, that were cut off.
        repaired: False when there was nothing to repair.
    """

    path: Path
    n_images: int | None
    n_cut: int
    repaired: bool

    def __str__(self) -> str:
        images = "" if self.n_images is None else f": {self.n_images} images"
        if not self.repaired:
            return f"{self.path}: nothing to repair{images}"
        cut = f", {self.n_cut} incomplete ones cut off" if self.n_cut else ""
        return f"{self.path}: repaired{images}{cut}"


def repair(path: Path) -> RepairResult:
    """Repair the file at `path`, in place; may be repeated.

    Raises `FileLayoutError`, and leaves the file unchanged, if a process has it open for writing, if it is
    not an HDF5 file, or if it was truncated and flushed images are lost.
    """
    superblock = _read_superblock(path)
    if superblock is None or (not superblock.flags and superblock.end_of_file <= path.stat().st_size):
        n_images, _ = isolated(lambda: _images_and_end(path, path.stat().st_size), path)
        return RepairResult(path, n_images, 0, repaired=False)
    with _exclusively_opened(path) as fd:
        _check_unchanged(path, fd)
        try:
            n_images = _declare_closed(path, fd, superblock)
        except OSError as error:
            raise FileLayoutError(f"{path}: cannot be repaired: {error.strerror}") from error
    return RepairResult(path, n_images, _cut(path), repaired=True)


def _declare_closed(path: Path, fd: int, superblock: _Superblock) -> int | None:
    """Clear the flags and set the true end of the file, unless its content cannot be read then."""
    size = os.fstat(fd).st_size
    original = os.pread(fd, _SIZE, 0)
    try:
        # A SWMR writer leaves an outdated end, and a plain open reads no further. The true end may lie in
        # space that was allocated and never written; `_end_of_rows` refuses a file that lost more.
        end = max(superblock.end_of_file, size)
        _write_superblock(fd, original, end)
        n_images, end_of_rows = isolated(lambda: _images_and_end(path, size), path)
        if end_of_rows > end:
            _write_superblock(fd, original, end_of_rows)
    except BaseException:
        os.pwrite(fd, original, 0)
        os.ftruncate(fd, size)
        raise
    return n_images


def _images_and_end(path: Path, size: int) -> tuple[int | None, int]:
    """Return the number of images, and the offset at which the space of the rows ends."""
    with examine(path) as opened:
        n_images = _n_images(path, opened)
        return n_images, _end_of_rows(path, opened.file, n_images or 0, size)


def limits_of_the_check(processes: str) -> str:
    """Return what `repair` has found out about writers, in `processes`, and what it cannot know."""
    return (
        f"checked: unchanged for {TOUCHED_WITHIN_S:g} s or more, no HDF5 lock, not open for writing in "
        f"{processes}; a writer that is stopped in another container or on another host cannot be seen, and "
        "damages the repaired file if it continues: if there is one, kill it"
    )


def visible_processes() -> str:
    """Return how many processes `writers_of` looks into, in words."""
    processes = list(Path("/proc").glob("[0-9]*/fd"))
    n_visible = sum(os.access(descriptors, os.R_OK | os.X_OK) for descriptors in processes)
    return f"{n_visible} of {len(processes)} processes of this host"


def writers_of(path: Path) -> list[int]:
    """Return the ids of the processes with `path` open for writing that this user can see on this host."""
    status = path.stat()
    found: set[int] = set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            other = link.stat()
            if (other.st_dev, other.st_ino) != (status.st_dev, status.st_ino):
                continue
            flags = (link.parent.parent / "fdinfo" / link.name).read_text().split("flags:", 1)[1].split()[0]
        except (OSError, IndexError):
            continue
        if int(flags, 8) & os.O_ACCMODE != os.O_RDONLY:
            found.add(int(link.parent.parent.name))
    return sorted(found)


def being_written(path: Path) -> str:
    """Return `being written by` the processes of this host that do, an empty string if there are none."""
    if writers := writers_of(path):
        return f"being written by process {', '.join(map(str, writers))}"
    # Non-blocking, because a lease that another process has would make the open wait.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        is_open = is_open_for_writing(fd)
    finally:
        os.close(fd)
    return "being written by a process of another user or container" if is_open else ""


def _check_unchanged(path: Path, fd: int) -> None:
    """Refuse a file that another process changes, perhaps in another container or on another host."""
    before = os.fstat(fd)
    time.sleep(UNCHANGED_S if abs(time.time() - before.st_mtime) < SURELY_OLD_S else TOUCHED_WITHIN_S)
    after = os.fstat(fd)
    if (after.st_mtime_ns, after.st_size) != (before.st_mtime_ns, before.st_size):
        raise FileLayoutError(
            mismatch(
                str(path),
                f"a file that stays unchanged for {UNCHANGED_S:g} s",
                "one that changes",
                "a process on another host is writing it",
            )
        )


@dataclass(frozen=True, slots=True)
class _Superblock:
    flags: int
    end_of_file: int


def _read_superblock(path: Path) -> _Superblock | None:
    """Return the superblock; None if its version has no flags that a writer could leave set."""
    try:
        check_is_file(path)
        with path.open("rb") as file:
            block = file.read(_SIZE)
    except OSError as error:
        raise FileLayoutError(f"{path}: cannot be read: {error.strerror}") from error
    if (
        len(block) < _SIZE
        or block[:8] != SIGNATURE
        or block[_VERSION] not in (2, 3)
        or block[_ADDRESS_BYTES] != 8
    ):
        return None
    if lookup3(block[:_CHECKSUM]) != int.from_bytes(block[_CHECKSUM:], "little"):
        raise FileLayoutError(f"{path}: is damaged: the checksum of its superblock does not fit")
    return _Superblock(block[_FLAGS], int.from_bytes(block[_END_OF_FILE], "little"))


def _write_superblock(fd: int, original: bytes, end_of_file: int) -> None:
    block = bytearray(original)
    block[_FLAGS] = 0
    block[_END_OF_FILE] = end_of_file.to_bytes(8, "little")
    block[_CHECKSUM:] = lookup3(bytes(block[:_CHECKSUM])).to_bytes(4, "little")
    os.ftruncate(fd, end_of_file)
    # A write of 48 bytes within a page is atomic for readers.
    os.pwrite(fd, block, 0)
    os.fsync(fd)


@contextmanager
def _exclusively_opened(path: Path) -> Iterator[int]:
    """Open `path` for writing, if no process writes it or holds its HDF5 lock.

    A SWMR writer releases its lock for readers, so the descriptors of all processes are checked as well.
    """
    if writing := being_written(path):
        raise FileLayoutError(f"{path}: is {writing}; repair it after that process has ended")
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise FileLayoutError(f"{path}: cannot be written: {error.strerror}") from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FileLayoutError(f"{path}: another process has it open (HDF5 file lock)") from error
        except OSError:
            pass  # A file system without locks.
        else:
            # HDF5 opens the file itself later and takes its own locks.
            fcntl.flock(fd, fcntl.LOCK_UN)
        yield fd
    finally:
        os.close(fd)


def _end_of_rows(path: Path, file: h5py.File, n_rows: int, size: int) -> int:
    """Return the offset where the space of the datasets ends. Refuse rows beyond `size`, the file's end."""
    group = raw_group(file) or metadata_group(file)
    if group is None:
        return 0
    end = 0
    for name in ("data", "metadata"):
        dataset = group.get(name)
        if not isinstance(dataset, h5py.Dataset):
            continue
        lost, end_of_dataset = _rows_beyond(dataset, n_rows, size)
        end = max(end, end_of_dataset)
        if lost:
            raise FileLayoutError(
                f"{path}: is truncated to {size} bytes: {lost} of {n_rows} rows of {dataset.name} are lost"
            )
    return end


def _rows_beyond(dataset: h5py.Dataset, n_rows: int, size: int) -> tuple[int, int]:
    """Return how many of the first `n_rows` lie beyond `size`, even in part, and the end of the dataset."""
    chunks = dataset.chunks
    if chunks is None:
        offset = dataset.id.get_offset()
        end = 0 if offset is None else offset + dataset.nbytes
        return (n_rows if end > size else 0), end
    row_bytes = dataset.dtype.itemsize * int(np.prod(dataset.shape[1:]))
    filtered = dataset.id.get_create_plist().get_nfilters() > 0
    lost = end = 0

    def add(chunk: h5d.StoreInfo) -> None:
        nonlocal lost, end
        end = max(end, chunk.byte_offset + chunk.size)
        declared = min(chunks[0], n_rows - chunk.chunk_offset[0])
        room = max(size - chunk.byte_offset, 0)
        there = (declared if room >= chunk.size else 0) if filtered else room // row_bytes
        lost += max(declared - there, 0)

    dataset.id.chunk_iter(add)
    return lost, end


def _n_images(path: Path, opened: Opened) -> int | None:
    if raw_group(opened.file) is not None:
        return raw_file_of(path, opened).n_rows
    if metadata_group(opened.file) is not None:
        return metadata_file_of(path, opened).n_rows
    return None


def _cut(path: Path) -> int:
    """Cut `data` to the rows of `metadata`. Return the number of images cut off."""
    try:
        with h5py.File(path, "r+", libver=FILE_FORMAT, locking=False) as file:
            group = raw_group(file)
            if group is None:
                return 0
            data, metadata = group["data"], group["metadata"]
            assert isinstance(data, h5py.Dataset)
            assert isinstance(metadata, h5py.Dataset)
            n_cut = data.shape[0] - metadata.shape[0]
            if n_cut > 0:
                data.resize(metadata.shape[0], axis=0)
            return max(n_cut, 0)
    except DAMAGE as error:
        raise FileLayoutError(f"{path}: can be opened now, but its end cannot be cut: {error}") from error


def lookup3(data: bytes) -> int:
    """Bob Jenkins' hash `hashlittle` (public domain) with initial value 0: the checksum in HDF5 metadata."""
    a = b = c = (0xDEADBEEF + len(data)) & 0xFFFFFFFF
    while len(data) > 12:
        a, b, c = _mix(*_add(a, b, c, data[:12]))
        data = data[12:]
    if not data:
        return c
    return _final(*_add(a, b, c, data.ljust(12, b"\0")))


def _add(a: int, b: int, c: int, block: bytes) -> tuple[int, int, int]:
    words = (int.from_bytes(block[i : i + 4], "little") for i in (0, 4, 8))
    x, y, z = ((value + word) & 0xFFFFFFFF for value, word in zip((a, b, c), words, strict=True))
    return x, y, z


def _rotated(value: int, bits: int) -> int:
    return ((value << bits) | (value >> (32 - bits))) & 0xFFFFFFFF


def _mix(a: int, b: int, c: int) -> tuple[int, int, int]:
    for bits in (4, 6, 8, 16, 19, 4):
        a = ((a - c) & 0xFFFFFFFF) ^ _rotated(c, bits)
        c = (c + b) & 0xFFFFFFFF
        a, b, c = b, c, a
    return a, b, c


def _final(a: int, b: int, c: int) -> int:
    for bits in (14, 11, 25, 16, 4, 14, 24):
        c = ((c ^ b) - _rotated(b, bits)) & 0xFFFFFFFF
        a, b, c = b, c, a
    return b
