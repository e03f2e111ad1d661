"""Open HDF5 files of any origin for reading, with errors that name the file and say what to do.

All readers in `stddaq.files` open their files here. A file whose consistency flag is set (a writer has it
open, or was killed) is opened only on request.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import h5py
from h5py import h5f, h5p  # pyright: ignore[reportAttributeAccessIssue]

from stddaq.daemon.isolation import CrashError, run_in_fork
from stddaq.errors import FileLayoutError, StdDaqError
from stddaq.text import command_line, mismatch

T = TypeVar("T")

# Reading a million rows takes a second from a local disk.
READING_TIMEOUT_S = 60.0
SIGNATURE = b"\x89HDF\r\n\x1a\n"
# The exceptions of h5py for a file with invalid content.
DAMAGE = (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, MemoryError)

_ACCESS = h5p.create(h5p.FILE_ACCESS)
_ACCESS_WITHOUT_LOCKS = h5p.create(h5p.FILE_ACCESS)
_ACCESS_WITHOUT_LOCKS.set_file_locking(False, ignore_when_disabled=False)

# A second handle of a growing file in one process shows only what the first one has read.
_growing = threading.RLock()


class UnclosedFileError(FileLayoutError):
    """A writer has the file open, or left it without closing it; HDF5 refuses a plain open."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A file open for reading. `unclosed`: its consistency flag is set, it may grow while it is read."""

    file: h5py.File
    unclosed: bool


@contextmanager
def examine(path: Path, allow_unclosed: bool = False, locking: bool = True) -> Iterator[Opened]:
    """Open `path` as `open_file` does; every error of h5py inside the block means a damaged file."""
    with open_file(path, allow_unclosed, locking=locking) as opened, damage_named(path):
        yield opened


@contextmanager
def open_file(
    path: Path, allow_unclosed: bool = False, as_growing: bool = False, locking: bool = True
) -> Iterator[Opened]:
    """Open `path` for reading; with `allow_unclosed` also while it is written in SWMR mode.

    Only one thread at a time has files open in that way: keep it short. `as_growing` treats the file as one
    that grows, because the sources of its virtual datasets may grow. Without `locking` the file is known to
    be closed by its writer. Raises `FileLayoutError` when it cannot be opened, `UnclosedFileError` when its
    writer has not closed it.
    """
    with _growing if allow_unclosed else nullcontext():
        opened = _open(path, allow_unclosed, as_growing, locking)
        try:
            yield opened
        finally:
            opened.file.close()


@contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Turn the exceptions of h5py for a damaged file into a `FileLayoutError` that names `path`."""
    try:
        yield
    except StdDaqError:
        raise
    except DAMAGE as error:
        raise FileLayoutError(f"{path}: is damaged: {_short(error)}") from error


def isolated(function: Callable[[], T], path: Path, timeout: float | None = None) -> T:
    """Run `function`, which reads `path`, in a fork of this process: for programs without threads.

    HDF5 can crash on a damaged file, or read it without end (https://github.com/HDFGroup/hdf5/issues/1707):
    in a file left by a SWMR writer it reads a broken block a hundred times, and doubles the pause each time.
    Raise `FileLayoutError` then. The default of `timeout` is `READING_TIMEOUT_S`.
    """
    try:
        return run_in_fork(function, READING_TIMEOUT_S if timeout is None else timeout, str(path))
    except CrashError as error:
        raise FileLayoutError(f"{path}: is damaged: HDF5 crashes over it") from error
    except TimeoutError as error:
        raise FileLayoutError(f"{path}: is damaged: HDF5 does not finish reading it") from error


def _open(path: Path, allow_unclosed: bool, as_growing: bool, locking: bool) -> Opened:
    try:
        check_is_file(path)
        if as_growing:
            with suppress(OSError):  # Files of an older format cannot grow.
                return Opened(_hdf5_file(path, swmr=True), unclosed=True)
        return Opened(_hdf5_file(path, locking=locking), unclosed=False)
    except FileNotFoundError as error:
        raise FileLayoutError(f"{path}: is missing, no such file") from error
    except FileLayoutError:
        raise
    except (IsADirectoryError, NotADirectoryError, PermissionError) as error:
        raise FileLayoutError(f"{path}: cannot be read: {error.strerror or error}") from error
    except BlockingIOError as error:
        raise UnclosedFileError(f"{path}: another process is writing it (HDF5 file lock)") from error
    except DAMAGE as error:
        if "file is already open for" not in str(error):
            raise _unreadable(path, error) from error
        if not allow_unclosed:
            raise UnclosedFileError(
                f"{path}: was not closed: it is being written, or its writer was killed; "
                f"in the latter case {command_line('stddaq', 'repair', path)} makes it readable"
            ) from error
    try:
        return Opened(_hdf5_file(path, swmr=True), unclosed=True)
    except DAMAGE as error:
        raise _unreadable(path, error) from error


def check_is_file(path: Path) -> None:
    """Raise `FileLayoutError` for a pipe, whose reader would wait, a device or a socket; `OSError`."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        mode = os.fstat(fd).st_mode
    finally:
        os.close(fd)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise FileLayoutError(mismatch(str(path), "a file", "a pipe" if stat.S_ISFIFO(mode) else "a device"))


def _hdf5_file(path: Path, swmr: bool = False, locking: bool = True) -> h5py.File:
    # h5py would make the lists of properties for each file, which takes as long as opening it.
    name, flags = os.fsencode(path), h5f.ACC_RDONLY | (h5f.ACC_SWMR_READ if swmr else 0)
    if locking:
        try:
            return h5py.File(h5f.open(name, flags, _ACCESS))
        except BlockingIOError:
            raise
        except OSError as error:
            if "unable to lock file" not in str(error):
                raise
    # Also if the file system has no locks.
    return h5py.File(h5f.open(name, flags, _ACCESS_WITHOUT_LOCKS))


def _unreadable(path: Path, error: Exception) -> FileLayoutError:
    text = str(error)
    if "truncated file" in text:
        return FileLayoutError(f"{path}: is truncated, {path.stat().st_size} bytes are left of a longer file")
    if "signature not found" in text:
        size = path.stat().st_size
        return FileLayoutError(f"{path}: is not an HDF5 file ({'empty' if not size else f'{size} bytes'})")
    return FileLayoutError(f"{path}: is damaged: {_short(error)}")


def _short(error: Exception) -> str:
    """Return the reason inside a long message of HDF5, in one line."""
    if isinstance(error, MemoryError):
        return "asks for more memory than there is"
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else f"{text[:197]}..."


def relative_name(path: Path, directory: Path) -> str:
    """Return `path` relative to `directory`, both resolved, so that the two can be moved together."""
    if path.parent == directory:
        return path.name  # To resolve links takes 0.1 ms.
    return os.path.relpath(path.parent.resolve() / path.name, directory.resolve())
