"""A file of an application definition while it is made: it appears complete, or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import h5py
from h5py import h5f  # pyright: ignore[reportAttributeAccessIssue]

from stddaq.errors import FileLayoutError, OutputExistsError
from stddaq.files.file_format import new_file_access
from stddaq.files.frames import Frames
from stddaq.files.names import master_file_name, metadata_file_name
from stddaq.new_file import replacing
from stddaq.open_directory import OutsideRootsError
from stddaq.text import mismatch

_ACCESS = new_file_access()
# Values are written one by one. For each line of a gap in a mask HDF5 would read 64 KiB into a buffer.
_ACCESS.set_sieve_buf_size(0)


def write_application_file(
    path: Path,
    frames: Frames,
    images: str,
    write: Callable[[h5py.File], None],
    overwrite: bool,
    roots: Sequence[Path],
) -> None:
    """Create the file `path` with what `write` writes, below one of `roots` if any.

    The raw files are read through its dataset `images` before it appears. Raise `FileLayoutError`,
    `OutputExistsError`, `OutsideRootsError`.
    """
    # To resolve links takes 0.1 ms.
    is_raw = os.path.lexists(path) and any(file.raw.path.resolve() == path.resolve() for file in frames.files)
    if is_raw or path.name.endswith((master_file_name(""), metadata_file_name(""))):
        raise OutputExistsError(mismatch(str(path), "a name of no other file of a run", path.name))
    try:
        with replacing(path, overwrite=overwrite, roots=roots) as temporary:
            # h5py would make the lists of properties for each file, which takes longer than to open it.
            name = os.fsencode(temporary.opened)
            with h5py.File(h5f.create(name, h5f.ACC_TRUNC, fapl=_ACCESS)) as file:
                write(file)
            with h5py.File(h5f.open(name, h5f.ACC_RDONLY, _ACCESS)) as file:
                shown = file[images]
                assert isinstance(shown, h5py.Dataset)
                frames.verify(shown)
    except FileExistsError as error:
        raise OutputExistsError(f"{error}; allow overwriting to replace it") from error
    except OutsideRootsError:
        raise
    except (OSError, RuntimeError) as error:
        raise FileLayoutError(
            f"{path}: cannot be written: {getattr(error, 'strerror', 0) or error}"
        ) from error
