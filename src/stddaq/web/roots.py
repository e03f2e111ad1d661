"""The directories below which files may be used, whatever a path looks like."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from stddaq.web.errors import HttpRefusalError


class Roots:
    """Checks paths. Every method raises `HttpRefusalError`."""

    def __init__(self, roots: Sequence[str]) -> None:
        self._roots = [Path(root).resolve() for root in roots]

    def check(self, path: Path) -> Path:
        """`path` without links and `..`, which is below a root."""
        try:
            resolved = path.resolve()
        except (OSError, RuntimeError, ValueError) as error:
            raise HttpRefusalError(422, f"{printable(path)}: cannot be resolved: {error}") from error
        if not any(resolved.is_relative_to(root) for root in self._roots):
            roots = ", ".join(map(str, self._roots)) or "none: the service was started without --root"
            raise HttpRefusalError(403, f"{printable(path)}: allowed are files below {roots}")
        return resolved

    def existing_file(self, name: str, key: str) -> Path:
        """The file of the absolute path `name`; `key` says in messages what it was given as."""
        return self._existing(name, key, Path.is_file, "a file")

    def existing_directory(self, name: str, key: str) -> Path:
        """The same of a directory."""
        return self._existing(name, key, Path.is_dir, "a directory")

    def new_file(self, directory: Path, name: str, key: str) -> Path:
        """The file `name`, absolute or as seen from `directory`, in a directory that exists."""
        check_text(name, key)
        given = directory / name
        parent = self.check(given.parent)
        try:
            if given.name not in ("", "..") and parent.is_dir():
                return parent / given.name
        except OSError as error:
            raise HttpRefusalError(422, f"{key}: {printable(name)}: {error.strerror}") from error
        raise HttpRefusalError(
            422, f"{key}: found {printable(name)}, allowed is a file in a directory that exists"
        )

    def _existing(self, name: str, key: str, kind: Callable[[Path], bool], kind_name: str) -> Path:
        check_text(name, key)
        if not name.startswith("/"):
            raise HttpRefusalError(422, f"{key}: found {printable(name)}, allowed is an absolute path")
        path = self.check(Path(name))
        try:
            if kind(path):
                return path
            exists = path.exists()
        except PermissionError as error:
            raise HttpRefusalError(403, f"{key}: {path}: {error.strerror}") from error
        except OSError as error:
            raise HttpRefusalError(422, f"{key}: {printable(name)}: {error.strerror}") from error
        if exists:
            raise HttpRefusalError(422, f"{key}: {path} is not {kind_name}")
        raise HttpRefusalError(404, f"{key}: {path} does not exist")


def check_text(text: str, key: str) -> None:
    """Raise `HttpRefusalError` for what no file system takes as a name."""
    if "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
        raise HttpRefusalError(422, f"{key}: found {printable(text)}, allowed is Unicode without NUL")


def printable(path: object) -> str:
    """A path for a message, whatever it holds."""
    return ascii(str(path))[1:-1][:300]
