"""What a command may replace where its user names the output: files that show images of raw files."""

from __future__ import annotations

import os
from pathlib import Path

import h5py

from stddaq.errors import FileLayoutError, OutputExistsError
from stddaq.files.opening import damage_named, examine
from stddaq.text import mismatch


def check_replaceable(path: Path) -> None:
    """Raise `OutputExistsError` if `path` is anything but a file over raw files, which can be made again."""
    if not os.path.lexists(path):
        return
    try:
        with damage_named(path), examine(path) as opened:
            is_replaceable = opened.file.visititems(_is_virtual)
    except FileLayoutError:
        is_replaceable = False
    if not is_replaceable:
        expected = "a new file, or one to replace that shows images of raw files"
        raise OutputExistsError(
            mismatch(str(path), expected, "another one", "choose another name, or remove it first")
        )


def _is_virtual(_: str, found: h5py.Group | h5py.Dataset) -> bool | None:
    return (isinstance(found, h5py.Dataset) and found.is_virtual) or None
