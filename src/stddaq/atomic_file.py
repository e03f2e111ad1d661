"""Replace a file in one step: a reader finds the old content or the new one, never a part of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path, *, overwrite: bool = True) -> Iterator[Path]:
    """Yield an empty temporary file beside `path`, and put it in place when the block succeeds.

    When the block raises, the temporary file is removed and `path` stays as it is. Without `overwrite` an
    existing file raises `FileExistsError`, even one that appears while the block runs.
    """
    if not overwrite and os.path.lexists(path):
        raise FileExistsError(f"{path}: expected a new file, got an existing one")
    temporary = _temporary(path)
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    try:
        yield temporary
        _put_in_place(temporary, path, overwrite)
    finally:
        temporary.unlink(missing_ok=True)


def replace_file(path: Path, content: bytes) -> None:
    """Replace `path`, keeping its mode and owner. The new content is on the disk when this returns."""
    temporary = _temporary(path)
    try:
        create_file(temporary, content, like=path)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _flush_directory(path.parent)


def create_file(path: Path, content: bytes, *, like: Path) -> None:
    """Create `path` with the mode and owner of `like`. It is on the disk when this returns."""
    model = like.stat()
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
        if (model.st_uid, model.st_gid) != (os.geteuid(), os.getegid()):
            os.fchown(file.fileno(), model.st_uid, model.st_gid)
        os.fchmod(file.fileno(), model.st_mode & 0o7777)
        file.flush()
        os.fsync(file.fileno())


def _temporary(path: Path) -> Path:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    # Only a process that died can have left a file of this process's number.
    temporary.unlink(missing_ok=True)
    return temporary


def _put_in_place(temporary: Path, path: Path, overwrite: bool) -> None:
    if not overwrite:
        try:
            # Unlike a rename, a link never replaces a file that has appeared meanwhile.
            path.hardlink_to(temporary)
        except FileExistsError as error:
            raise FileExistsError(f"{path}: expected a new file, got an existing one") from error
        except OSError:
            pass  # A file system without hard links.
        else:
            return
    temporary.replace(path)


def _flush_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
