"""A POSIX shared-memory file that several services attach to: opened or created, locked, removed by the last.

Each user holds a shared lock (`flock`). Locks cannot show std_daq services (C++), which take none: those are
found by their memory mappings.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import time
from pathlib import Path

from stddaq.errors import GeometryError
from stddaq.text import mismatch

SHM_DIRECTORY = Path("/dev/shm")
SEGMENT_MODE = 0o777
ATTACH_TIMEOUT_S = 2.0
POLL_PERIOD_S = 0.005


class SharedSegment:
    """One shared-memory file, opened or created at a given size and held by a shared lock.

    Attributes:
        created: whether this process created it.
        view: memoryview of the whole segment.
    """

    def __init__(self, name: str, size: int, describe: str) -> None:
        """Open or create the segment. `describe`: what it is for, in errors. Raises `GeometryError`."""
        self.path = SHM_DIRECTORY / name
        self.created = False
        try:
            self._fd = self._open(size, describe)
            self.map = self._map(size)
        except (OSError, OverflowError) as error:
            reason = (
                (error.strerror or str(error)) if isinstance(error, OSError) else "more than can be addressed"
            )
            raise GeometryError(
                f"shared memory {self.path}: {reason}; this configuration needs {describe}"
            ) from error
        self.view = memoryview(self.map)

    def _open(self, size: int, describe: str) -> int:
        deadline = time.monotonic() + ATTACH_TIMEOUT_S
        while time.monotonic() < deadline:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, SEGMENT_MODE)
            try:
                if self._settle(fd, size, describe):
                    return fd
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)
            time.sleep(POLL_PERIOD_S)
        raise GeometryError(
            f"shared memory {self.path}: another service has kept it locked for {ATTACH_TIMEOUT_S:g} s"
        )

    def _map(self, size: int) -> mmap.mmap:
        try:
            return mmap.mmap(self._fd, size)
        except BaseException:
            if self.created:
                self.path.unlink(missing_ok=True)
            os.close(self._fd)
            raise

    def _settle(self, fd: int, size: int, describe: str) -> bool:
        """Size a new segment, check an existing one, take the shared lock. Returns False to try again."""
        found = os.fstat(fd).st_size
        # An empty segment is sized under the exclusive lock, so that of two services with different
        # geometries only one can be the first.
        try:
            fcntl.flock(fd, (fcntl.LOCK_EX if found == 0 else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        try:
            if self.path.stat().st_ino != os.fstat(fd).st_ino:
                return False  # Its last user removed it after it was opened here.
        except FileNotFoundError:
            return False
        found = os.fstat(fd).st_size
        if found == 0:
            try:
                os.ftruncate(fd, size)
            except BaseException:
                self.path.unlink(missing_ok=True)
                raise
            self.created = True
        elif found != size:
            if self._is_abandoned(fd):
                self.path.unlink(missing_ok=True)
                return False
            advice = "the services that use it have another configuration"
            raise GeometryError(mismatch(f"shared memory {self.path}", describe, f"{found} bytes", advice))
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return True

    def reserve(self, offset: int, size: int) -> None:
        """Get memory for these bytes. Raises `OSError`."""
        # Writing to a page for which shared memory has no room kills the process (SIGBUS).
        os.posix_fallocate(self._fd, offset, size)

    def is_current(self) -> bool:
        """Return whether a service that attaches now gets this segment."""
        try:
            return self.path.stat().st_ino == os.fstat(self._fd).st_ino
        except FileNotFoundError:
            return False

    def is_replaced(self) -> bool:
        """Return whether another segment has its name: this one was removed, and another one created."""
        try:
            return self.path.stat().st_ino != os.fstat(self._fd).st_ino
        except FileNotFoundError:
            return False

    def is_unshared(self) -> bool:
        """Return whether no other process has locked it or, as far as this user may see, mapped it."""
        return self.is_current() and self._is_abandoned(self._fd)

    def _is_abandoned(self, fd: int) -> bool:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        unused = not is_mapped_by_others(self.path)
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return unused

    def release(self) -> None:
        """Unmap and unlock, so that this process no longer counts as a user. Call `close` next."""
        # A view of a slot that is still in use keeps the mapping until it is deleted.
        with contextlib.suppress(BufferError):
            self.view.release()
            self.map.close()
        fcntl.flock(self._fd, fcntl.LOCK_UN)

    def is_last(self) -> bool:
        """Return, after `release`, whether no other service has a lock. Then none can attach before `close`.

        Of several services that detach together one succeeds: a refused exclusive lock leaves no lock.
        """
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return self.is_current()

    def unlink(self) -> None:
        """Remove its name; processes that have mapped it keep it."""
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Detach."""
        self.release()
        os.close(self._fd)


def is_mapped_by_others(path: Path) -> bool:
    """Return whether another process maps `path`, of those whose maps this user may read."""
    wanted, own_pid = os.fsencode(path), str(os.getpid())
    for maps in Path("/proc").glob("[0-9]*/maps"):
        if maps.parent.name == own_pid:
            continue
        try:
            if any(line.rstrip().endswith(wanted) for line in maps.read_bytes().splitlines()):
                return True
        except OSError:
            continue
    return False
