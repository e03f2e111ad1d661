"""A file in POSIX shared memory: opened or created, locked by byte, mapped.

Segments belong to this user, root, or the group that `STDDAQ_SHM_GROUP` names; others are refused. Their
memory is reserved when they are made, because a write to a page without memory kills the process (SIGBUS).
"""

from __future__ import annotations

import contextlib
import fcntl
import grp
import mmap
import os
import stat
import struct
import time
from collections.abc import Iterator
from pathlib import Path

from stddaq.errors import GeometryError
from stddaq.file_lease import is_open_elsewhere, is_open_for_writing
from stddaq.text import bytes_text, mismatch

SHM_DIRECTORY = Path("/dev/shm")
SEGMENT_MODE = 0o777
GROUP_VARIABLE, MODE_VARIABLE = "STDDAQ_SHM_GROUP", "STDDAQ_SHM_MODE"
# Mode bit of files that stddaq created. Linux gives the sticky bit of a file no meaning.
_OWN_FILE = stat.S_ISVTX
_ACCESS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
_STRUCT_FLOCK = "hhqqi"
# The kernel closes the files of a process one after the other, and a fork has them until it executes.
_LEASE_TIMEOUT_S = 0.5
POLL_PERIOD_S = 0.005


class SharedSegment:
    """One shared-memory file, open.

    Attributes:
        path: where it is.
        inode: distinguishes it from another file with the same name.
    """

    def __init__(self, name: str, *, private: bool = False) -> None:
        """Open or create it; a new one is empty. Raises `GeometryError`.

        `private`: users without the right to write get no right to read, so that they cannot lock it.
        """
        self.path = SHM_DIRECTORY / name
        self._map: mmap.mmap | None = None
        with _explained(self.path):
            self._fd = self._open(private)
            try:
                status = os.fstat(self._fd)
                _check_owner(self.path, status)
            except BaseException:
                os.close(self._fd)
                raise
        self.inode = status.st_ino
        self._is_open = True

    def _open(self, private: bool) -> int:
        while True:
            # First without O_CREAT: with it, the kernel refuses the file of another user in a directory like
            # /dev/shm, even to root (fs.protected_regular).
            try:
                return os.open(self.path, _ACCESS)
            except FileNotFoundError:
                pass
            group, mode = common_group(), _mode()
            try:
                fd = os.open(self.path, _ACCESS | os.O_CREAT | os.O_EXCL, SEGMENT_MODE)
            except FileExistsError:
                continue
            try:
                _set_rights(fd, group, mode, private)
            except BaseException:
                self.path.unlink(missing_ok=True)
                os.close(fd)
                raise
            return fd

    @property
    def size(self) -> int:
        """Its size in bytes."""
        return os.fstat(self._fd).st_size

    def reserve(self, size: int, describe: str) -> None:
        """Get memory for `size` bytes, and grow to that size. Raises `GeometryError` if there is too little.

        `describe`: what needs them.
        """
        status = os.fstat(self._fd)
        missing = size - status.st_blocks * 512
        if status.st_size >= size and missing <= 0:
            return
        room = os.fstatvfs(self._fd)
        free = room.f_bavail * room.f_frsize
        try:
            if missing <= free:
                os.posix_fallocate(self._fd, 0, size)
                return
            reason = ""
        except OSError as error:
            reason = f"{error.strerror}; "
        raise GeometryError(
            mismatch(
                f"shared memory {self.path}",
                f"room for {bytes_text(size)} ({describe})",
                f"{bytes_text(free)} free in {self.path.parent}",
                f"{reason}free or enlarge it, or configure a smaller ring (`ram_buffer_gb`)",
            )
        )

    def map(self, size: int) -> memoryview:
        """Map the first `size` bytes. Raises `GeometryError`."""
        with _explained(self.path):
            self._map = mmap.mmap(self._fd, size)
        return memoryview(self._map)

    def is_current(self) -> bool:
        """Return whether its name still names it: it was not removed, renamed or replaced."""
        return self.inode == _inode_of(self.path)

    def is_replaced(self) -> bool:
        """Return whether another file has its name."""
        return _inode_of(self.path) not in (None, self.inode)

    def is_written_at(self, offset: int) -> bool:
        """Return whether a process has written to, or read from, the page at `offset` since it was made."""
        try:
            return os.lseek(self._fd, offset, os.SEEK_DATA) == offset
        except OSError:  # No data beyond.
            return False

    def is_own(self) -> bool:
        """Return whether stddaq created it."""
        return bool(os.fstat(self._fd).st_mode & _OWN_FILE)

    def read(self, n_bytes: int) -> bytes:
        """Return the first bytes, fewer if it is smaller."""
        return os.pread(self._fd, n_bytes, 0)

    def lock(self, byte: int, *, shared: bool = False) -> bool:
        """Lock one byte for this object, until `unlock` or the end of the process. Return whether it is.

        The locks of an object replace each other.
        """
        kind = fcntl.F_RDLCK if shared else fcntl.F_WRLCK
        try:
            self._set_lock(kind, byte)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def is_locked(self, byte: int) -> bool:
        """Return whether another object or process has locked one byte."""
        request = struct.pack(_STRUCT_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
        kind = struct.unpack(_STRUCT_FLOCK, fcntl.fcntl(self._fd, fcntl.F_OFD_GETLK, request))[0]
        return kind != fcntl.F_UNLCK

    def unlock(self, byte: int) -> None:
        """Unlock one byte."""
        self._set_lock(fcntl.F_UNLCK, byte)

    def _set_lock(self, kind: int, byte: int) -> None:
        # A lock of the open file, not of the process: each object has its own.
        fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, struct.pack(_STRUCT_FLOCK, kind, os.SEEK_SET, byte, 1, 0))

    def unlink(self) -> None:
        """Remove its name; processes that have opened it keep it. Raises `GeometryError`."""
        remove(self.path)

    def close(self) -> None:
        """Close and unmap it. A view that is still in use keeps the mapping."""
        if not self._is_open:
            return
        self._is_open = False
        self._unmap()
        os.close(self._fd)

    def _unmap(self) -> bool:
        try:
            if self._map is not None:
                self._map.close()
        except BufferError:
            return False
        return True

    def close_as_last(self) -> bool:
        """Close it. Return whether no other process has it open for writing; see `is_in_use`."""
        # A mapping that remains is a use. The lease of the open file itself does not count it.
        if self._unmap():
            self.close()
            return not is_in_use(self.path)
        is_last = is_open_elsewhere(self._fd) is False
        self.close()
        return is_last


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what the system refuses into a `GeometryError` that names the file."""
    try:
        yield
    except OSError as error:
        if isinstance(error, PermissionError):
            with contextlib.suppress(OSError):
                expected = f"that user {os.geteuid()} may read and write it"
                raise _refusal(path, expected, path.lstat()) from error
        raise GeometryError(f"shared memory {path}: {error.strerror or error}") from error


def status_of(path: Path) -> os.stat_result | None:
    """Return the status of a segment; None if there is none. Raises `GeometryError` for another user's."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    _check_owner(path, status)
    return status


def remove(path: Path) -> None:
    """Remove a segment's name, if it is there. Raises `GeometryError` without the right to."""
    with _explained(path):
        path.unlink(missing_ok=True)


def is_in_use(path: Path) -> bool:
    """Return whether a process has the file open, or mapped, for writing; True if that cannot be known.

    std_daq services (C++) take no locks. The kernel knows them all, of any user and in any container.
    """
    deadline = time.monotonic() + _LEASE_TIMEOUT_S
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        while (is_used := is_open_for_writing(fd) is not False) and time.monotonic() < deadline:
            time.sleep(POLL_PERIOD_S)
        return is_used
    finally:
        os.close(fd)


def _inode_of(path: Path) -> int | None:
    try:
        return path.lstat().st_ino
    except FileNotFoundError:
        return None


def _set_rights(fd: int, group: int | None, mode: int | None, private: bool) -> None:
    """Set group and mode of a new file as configured."""
    if group is not None:
        os.fchown(fd, -1, group)
    if mode is None:
        mode = stat.S_IMODE(os.fstat(fd).st_mode) | (0 if group is None else 0o060)
    if private:
        writable = mode & 0o222
        mode &= writable << 1 | writable | writable >> 1
    os.fchmod(fd, mode | _OWN_FILE)


def _check_owner(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise GeometryError(mismatch(f"shared memory {path}", "a regular file", "something else"))
    if status.st_uid in (0, os.geteuid()):
        return
    group = common_group()
    if group is not None and status.st_gid == group:
        return
    raise _refusal(path, f"owner {os.geteuid()} or root", status)


def _refusal(path: Path, expected: str, status: os.stat_result) -> GeometryError:
    mode = stat.S_IMODE(status.st_mode) & 0o777
    found = f"owner {status.st_uid}, group {status.st_gid}, mode {mode:o}"
    advice = f"if the services run as several users, set {GROUP_VARIABLE} to their common group"
    return GeometryError(mismatch(f"shared memory {path}", expected, found, advice))


def common_group() -> int | None:
    """Return the group whose segments and sockets are accepted, if one is configured."""
    name = os.environ.get(GROUP_VARIABLE)
    if not name:
        return None
    try:
        return int(name) if name.isdecimal() else grp.getgrnam(name).gr_gid
    except KeyError:
        raise GeometryError(mismatch(GROUP_VARIABLE, "a group of this system", ascii(name))) from None


def _mode() -> int | None:
    """Return the mode of new segments, if one is configured."""
    text = os.environ.get(MODE_VARIABLE)
    if not text:
        return None
    try:
        mode = int(text, 8)
    except ValueError:
        mode = -1
    if not 0o600 <= mode <= 0o777 or mode & 0o600 != 0o600:
        raise GeometryError(mismatch(MODE_VARIABLE, "an octal mode from 600 to 777", ascii(text)))
    return mode
