"""The directories below which the service uses files, whatever a path looks like."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from stddaq.text import mismatch
from stddaq.web.errors import (
    PathForbiddenError,
    PathNotFoundError,
    RequestInvalidError,
)


class Roots:
    """Checks paths. Raise `PathForbiddenError` for a path outside the roots.

    Messages never reveal whether a path outside the roots exists.
    """

    def __init__(self, roots: Sequence[str]) -> None:
        self._roots = [Path(root).resolve() for root in roots]
        self._open_before: set[tuple[int, int]] = set()

    @property
    def directories(self) -> Sequence[Path]:
        """The roots themselves."""
        return self._roots

    def note_open_files(self) -> None:
        """Except the files that this process has open now from `check_open_files`."""
        self._open_before = {identity for identity, _ in _open_files()}

    def check_open_files(self) -> None:
        """Check all files that this process has open.

        A user may replace a path by a link after it was checked. What is open is what was read.
        """
        for identity, path in _open_files():
            if identity not in self._open_before:
                self._check_below(path, path)

    def check(self, path: Path) -> Path:
        """Return `path`, which must be below a root, without links and `..`."""
        try:
            resolved = path.resolve()
        except (OSError, RuntimeError, ValueError) as error:
            raise RequestInvalidError(f"{printable(path)}: cannot be resolved: {error}") from error
        self._check_below(resolved, path)
        return resolved

    def _check_below(self, resolved: Path, path: Path) -> None:
        if not any(resolved.is_relative_to(root) for root in self._roots):
            roots = ", ".join(map(str, self._roots))
            expected = f"a path below {roots}" if roots else "a service started with --root"
            raise PathForbiddenError(mismatch(printable(path), expected, "a path outside"))

    def existing_file(self, name: str, key: str) -> Path:
        """Return the file of the absolute path `name`. `key` names the parameter in messages."""
        return self._existing(name, key, Path.is_file, "a file")

    def existing_directory(self, name: str, key: str) -> Path:
        """Return the directory of the absolute path `name`. `key` names the parameter in messages."""
        return self._existing(name, key, Path.is_dir, "a directory")

    def new_file(self, directory: Path, name: str, key: str) -> Path:
        """Return the path of a new file; `name` is absolute or relative to `directory`."""
        check_text(name, key)
        given = directory / name
        parent = self.check(given.parent)
        try:
            if given.name not in ("", "..") and parent.is_dir():
                return parent / given.name
        except OSError as error:
            raise _access_error(key, name, error) from error
        raise RequestInvalidError(mismatch(key, "a file in an existing directory", printable(name)))

    def _existing(self, name: str, key: str, is_right: Callable[[Path], bool], kind: str) -> Path:
        check_text(name, key)
        if not name.startswith("/"):
            raise RequestInvalidError(mismatch(key, "an absolute path", printable(name)))
        path = self.check(Path(name))
        try:
            if is_right(path):
                return path
            exists = path.exists()
        except OSError as error:
            raise _access_error(key, name, error) from error
        if exists:
            raise RequestInvalidError(mismatch(f"{key}: {printable(path)}", kind, "something else"))
        raise PathNotFoundError(f"{key}: {printable(path)} does not exist")


def _open_files() -> Iterator[tuple[tuple[int, int], Path]]:
    """Yield device and inode, and the path, of each regular file that this process has open."""
    for link in Path("/proc/self/fd").iterdir():
        try:
            status, path = os.fstat(int(link.name)), link.readlink()
        except OSError:
            continue  # The descriptor of the listing itself.
        if stat.S_ISREG(status.st_mode) and not str(path).startswith("/memfd:"):
            yield (status.st_dev, status.st_ino), path


def check_text(text: str, key: str) -> None:
    """Raise `RequestInvalidError` if no file system takes `text` as a name."""
    if "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
        raise RequestInvalidError(mismatch(key, "Unicode without NUL", printable(text)))


def printable(path: object) -> str:
    """Return a path for a message, escaped and shortened."""
    return ascii(str(path))[1:-1][:300]


def _access_error(key: str, name: str, error: OSError) -> PathForbiddenError | RequestInvalidError:
    kind = PathForbiddenError if isinstance(error, PermissionError) else RequestInvalidError
    return kind(f"{key}: {printable(name)}: {error.strerror}")
