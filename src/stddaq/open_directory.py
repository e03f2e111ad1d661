"""A directory that is kept open, so that files are created in it even if its path changes later.

A user who may write to a directory can replace a name in it, or the directory itself, by a link at any time.
A service with more rights than that user must never follow such a link.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from stddaq.closing import Closing
from stddaq.errors import StdDaqError
from stddaq.text import escaped, mismatch


class OutsideRootsError(StdDaqError, PermissionError):
    """A directory is not below the directories in which files may be made."""


class OpenDirectory(Closing):
    """A directory, as a context manager. Errors name the whole path."""

    def __init__(self, path: Path, *, roots: Sequence[Path] = (), follow: bool = True) -> None:
        """Open `path`, which must be below one of `roots`, if there are any.

        Unless `follow`, `path` itself must not be a link. Raise `OSError`, `OutsideRootsError`.
        """
        self.path = path
        flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
        self.fd = os.open(path, flags)
        try:
            self._check_below(roots)
        except BaseException:
            self.close()
            raise

    def _check_below(self, roots: Sequence[Path]) -> None:
        if not roots:
            return
        # Check the open directory, because the path may lead elsewhere by now.
        real = (Path("/proc/self/fd") / str(self.fd)).readlink()
        allowed = [root.resolve() for root in roots]
        if not any(real.is_relative_to(root) for root in allowed):
            expected = f"a directory below {' or '.join(map(str, allowed))}"
            raise OutsideRootsError(mismatch("path", escaped(expected), escaped(str(self.path))))

    def copy(self) -> OpenDirectory:
        """Return the same directory as a new object, which must be closed separately."""
        duplicate = object.__new__(OpenDirectory)
        duplicate.path, duplicate.fd = self.path, os.dup(self.fd)
        return duplicate

    def create(self, name: str, mode: int = 0o666) -> int:
        """Return the descriptor of a new file. Raise `FileExistsError`, also for a link."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with self._named(name):
            return os.open(name, flags, mode, dir_fd=self.fd)

    def create_unnamed(self) -> int:
        """Return the descriptor of a new file without a name, which ends with its last descriptor."""
        with self._named("an unnamed file"):
            try:
                return os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=self.fd)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
                    raise
        # A file system, or a kernel, that cannot do this, so the file has a name for a moment.
        name = f".{os.getpid()}-{os.urandom(8).hex()}"
        fd = self.create(name, 0o600)
        self.remove(name)
        return fd

    @contextlib.contextmanager
    def opened(self, name: str) -> Iterator[Path]:
        """Yield the path by which libraries open exactly this file. Raise `OSError`, also for a link."""
        # Unlike a regular file, a FIFO would wait for its writer.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with self._named(name):
            fd = os.open(name, flags, dir_fd=self.fd)
        try:
            yield Path(f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)

    def remove(self, name: str) -> None:
        """Remove a file or link, if there is one."""
        with self._named(name), contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self.fd)

    def status(self, name: str) -> os.stat_result | None:
        """Return the status of a file or link; None if there is none."""
        with self._named(name), contextlib.suppress(FileNotFoundError):
            return os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        return None

    def replace(self, source: str, target: str) -> None:
        """Rename a file, over an existing one."""
        with self._named(target):
            os.replace(source, target, src_dir_fd=self.fd, dst_dir_fd=self.fd)

    def link(self, source: str, target: str) -> None:
        """Give a file a second name. Unlike a rename, this never replaces a file."""
        with self._named(target):
            os.link(source, target, src_dir_fd=self.fd, dst_dir_fd=self.fd, follow_symlinks=False)

    def open_for_reading(self) -> int:
        """Return a descriptor that can be locked, listed and flushed."""
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.fd)

    def names(self) -> list[str]:
        """Return the names in the directory, sorted."""
        fd = self.open_for_reading()
        try:
            return sorted(os.listdir(fd))  # noqa: PTH208  (a descriptor)
        finally:
            os.close(fd)

    def flush(self) -> None:
        """Write the names in the directory to the disk."""
        fd = self.open_for_reading()
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def close(self) -> None:
        """Close the directory. Closing again does nothing."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    @contextlib.contextmanager
    def _named(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # Errors of the system name only the relative path.
            raise OSError(error.errno, error.strerror, str(self.path / name)) from error
