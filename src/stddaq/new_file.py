"""Create files that appear complete, and never through a link that another user has planted."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from stddaq.errors import StdDaqError
from stddaq.open_directory import OpenDirectory
from stddaq.text import mismatch


class FileLostError(StdDaqError, OSError):
    """A file that is being written is no longer at its path."""


class NewFile:
    """A file that this process has created. It is kept open, and so is its directory.

    Attributes:
        path: its path, for messages. Another process may have put another file there.
        opened: the path by which libraries open exactly this file.
    """

    def __init__(self, directory: OpenDirectory, name: str, mode: int = 0o666) -> None:
        """Create `name` in `directory`, which this object closes. Raise `FileExistsError`."""
        self.path = directory.path / name
        self._directory, self._name = directory, name
        try:
            self.fd = directory.create(name, mode)
        except BaseException:
            directory.close()
            raise
        self.opened = Path(f"/proc/self/fd/{self.fd}")

    @classmethod
    def create(cls, path: Path, *, overwrite: bool, roots: Sequence[Path] = ()) -> NewFile:
        """Create `path`, whose directory must be below one of `roots`, if there are any.

        With `overwrite` an existing file is removed. Raise `FileExistsError`, `OutsideRootsError`, `OSError`.
        """
        directory = OpenDirectory(path.parent, roots=roots)
        try:
            if overwrite:
                # A new inode: a process that still reads the old file keeps it whole.
                directory.remove(path.name)
        except BaseException:
            directory.close()
            raise
        return cls(directory, path.name)

    def unnamed_beside(self) -> int:
        """Return the descriptor of a new file without a name on the same file system. Raise `OSError`."""
        return self._directory.create_unnamed()

    def remove(self) -> None:
        """Remove the file, unless another file has taken its name."""
        if self._is_at(self._name):
            self._directory.remove(self._name)

    @contextmanager
    def removed_on_error(self) -> Iterator[NewFile]:
        """Return the context that fills the file: it is removed and closed when the block raises."""
        try:
            yield self
        except BaseException:
            self.remove()
            self.close()
            raise

    def check_in_place(self) -> None:
        """Raise `FileLostError` if the file was removed, or it or its directory was renamed or replaced."""
        own = os.fstat(self.fd)
        try:
            found = self.path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            found = None
        except OSError:
            return  # The state of the file is unknown in this case.
        expected = "the file that is being written"
        if found is None or not own.st_nlink:
            got = "none: it or its directory was removed or renamed during the run"
            raise FileLostError(mismatch(str(self.path), expected, got))
        if (found.st_dev, found.st_ino) != (own.st_dev, own.st_ino):
            got = "another one, which has replaced it during the run"
            raise FileLostError(mismatch(str(self.path), expected, got))

    def move_to(self, name: str, *, overwrite: bool) -> None:
        """Rename the file within its directory. Raise `FileExistsError` unless `overwrite`."""
        directory, path = self._directory, self._directory.path / name
        if not overwrite:
            try:
                directory.link(self._name, name)
            except FileExistsError as error:
                raise FileExistsError(f"{path}: expected a new file, got an existing one") from error
            except OSError:
                directory.replace(self._name, name)  # A file system without hard links.
        else:
            directory.replace(self._name, name)
        if not self._is_at(name):
            raise OSError(f"{path}: another process has replaced the file while it was made")

    def replacing(self) -> AbstractContextManager[NewFile]:
        """Return the context of another file that takes the place of this one when the block succeeds."""
        return _replacing(self._directory, self._name, overwrite=True)

    def _is_at(self, name: str) -> bool:
        found, own = self._directory.status(name), os.fstat(self.fd)
        return found is not None and (found.st_dev, found.st_ino) == (own.st_dev, own.st_ino)

    def close(self) -> None:
        """Close the descriptors. Closing again does nothing."""
        self._directory.close()
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


@contextmanager
def replacing(path: Path, *, overwrite: bool = True, roots: Sequence[Path] = ()) -> Iterator[NewFile]:
    """Yield an empty temporary file beside `path`, and put it in place when the block succeeds.

    The directory must be below one of `roots`, if there are any. When the block raises, the temporary file is
    removed and `path` stays as it is. Without `overwrite` an existing file raises `FileExistsError`, even one
    that appears while the block runs.
    """
    with OpenDirectory(path.parent, roots=roots) as directory:
        if not overwrite and directory.status(path.name) is not None:
            raise FileExistsError(f"{path}: expected a new file, got an existing one")
        with _replacing(directory, path.name, overwrite) as new:
            yield new


@contextmanager
def _replacing(directory: OpenDirectory, name: str, overwrite: bool) -> Iterator[NewFile]:
    temporary = f".{name}.{os.getpid()}"
    # Only a process that died can have left a file of this process's number.
    directory.remove(temporary)
    new = NewFile(directory.copy(), temporary)
    try:
        yield new
        new.move_to(name, overwrite=overwrite)
    finally:
        new.remove()
        new.close()


def replace_file(path: Path, content: bytes) -> None:
    """Replace `path`, keeping its mode and owner. The new content is on the disk when this returns."""
    with OpenDirectory(path.parent) as directory:
        status = directory.status(path.name)
        if status is None:
            raise FileNotFoundError(f"{path}: expected an existing file, got none")
        temporary = f".{path.name}.{os.getpid()}"
        directory.remove(temporary)
        try:
            write_file(directory, temporary, content, like=status)
            directory.replace(temporary, path.name)
        finally:
            directory.remove(temporary)
        directory.flush()


def write_file(directory: OpenDirectory, name: str, content: bytes, *, like: os.stat_result) -> None:
    """Create a file with the mode and owner of `like`. It is on the disk when this returns."""
    with os.fdopen(directory.create(name, 0o600), "wb") as file:
        file.write(content)
        if (like.st_uid, like.st_gid) != (os.geteuid(), os.getegid()):
            os.fchown(file.fileno(), like.st_uid, like.st_gid)
        os.fchmod(file.fileno(), like.st_mode & 0o7777)
        file.flush()
        os.fsync(file.fileno())
