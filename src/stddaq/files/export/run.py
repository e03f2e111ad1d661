"""Export a run: written into an incomplete file, compared with the run, and then given its name.

`OUT.partial` is the incomplete file or directory, and `OUT.partial.json` says of which images, and how many
are complete; an export that was interrupted continues after them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import importlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from stddaq.errors import OutputExistsError, StdDaqError
from stddaq.files.export.source import Losses, Reader, Source, Writer, open_sources
from stddaq.text import mismatch

Format = Literal["hdf5", "tiff", "zarr"]
# Called with what is done, and the numbers of images that are done, and that will be.
OnProgress = Callable[[str, int, int], None]

SUFFIXES: dict[str, Format] = {
    ".h5": "hdf5",
    ".hdf5": "hdf5",
    ".nxs": "hdf5",
    ".tif": "tiff",
    ".tiff": "tiff",
    ".zarr": "zarr",
}
BLOCK_BYTES = 64 * 2**20


class ExportError(StdDaqError, RuntimeError):
    """An export cannot be made, or does not hold the images of the run."""


def export_run(
    path: Path,
    out: Path,
    prefix: str | None = None,
    *,
    format: Format | None = None,
    losses: Losses = "error",
    on_progress: OnProgress = lambda *_: None,
) -> int:
    """Copy the run of a file, or of `prefix` in a directory, to `out`. Return the number of images.

    The end of its name gives the format by default. Overwritten and failed images raise `LostImagesError`, or
    have the largest value of the type (NaN), or are left out; damaged ones are copied with their status. An
    export of the same images that was interrupted is continued. Every image is compared with the run
    before `out` appears. The parts of a run of several drivers have a file each: `outPart1.h5` and so on of
    `out.h5`, with the images that every part has, and all of them appear together. Raises
    `OutputExistsError`, `FileLayoutError`, `ExportError`.
    """
    kind, sources = prepare_export(path, out, prefix, format, losses)
    with contextlib.ExitStack() as journals:
        complete = []
        for out, source in sources.items():
            name = f"{partial_of(out).name}.json"
            journal = journals.enter_context(_Journal(out.with_name(name), f"{kind} {source.identity}"))
            _write_and_compare(kind, source, partial_of(out), journal, on_progress)
            complete.append((out, journal))
        for out, journal in complete:
            _give_name(partial_of(out), out)
            journal.remove()
    return len(next(iter(sources.values())))


def prepare_export(
    path: Path, out: Path, prefix: str | None, format: Format | None, losses: Losses
) -> tuple[Format, dict[Path, Source]]:
    """Return the format of an export that can be made, and the images of each file that it makes.

    Raises like `export_run`.
    """
    kind = format or format_of(out)
    _check_new(out)
    found = open_sources(path, prefix, losses)
    sources = {out: found[0]}
    if len(found) > 1:
        sources = {_of_part(out, number): source for number, source in enumerate(found, 1)}
    for one in sources:
        _check_new(one)
    if kind == "tiff" and not len(found[0]):
        raise ExportError(mismatch(str(path), "at least one image for TIFF", "none"))
    _implementation(kind)
    return kind, sources


def _of_part(out: Path, number: int) -> Path:
    return out.with_name(f"{out.stem}Part{number}{out.suffix}")


def _check_new(out: Path) -> None:
    if os.path.lexists(out):
        raise OutputExistsError(mismatch(str(out), "a new file", "an existing one"))


def partial_of(out: Path) -> Path:
    """Return the path of an incomplete export."""
    return out.with_name(f"{out.name}.partial")


def format_of(out: Path) -> Format:
    """Return the format by the end of a name. Raises `ExportError`."""
    found = SUFFIXES.get(out.suffix.lower())
    if found is None:
        expected = f"a name that ends in {', '.join(SUFFIXES)}, or a format"
        raise ExportError(mismatch(str(out), expected, out.suffix or "none of them"))
    return found


def _implementation(kind: Format) -> tuple[type[Writer], Callable[[Path], Reader]]:
    assert kind in get_args(Format)
    try:
        module: Any = importlib.import_module(f"stddaq.files.export.{kind}")
    except ModuleNotFoundError as error:
        if error.name != kind:
            raise
        advice = "pip install 'stddaq[export]'"
        raise ExportError(mismatch(f"package {kind}", "it, for this format", "none", advice)) from error
    return module.ImageWriter, module.reader


class _Journal:
    """Which export is in progress, and how far it is. Only one process has it open; a context manager."""

    def __init__(self, path: Path, identity: str) -> None:
        """Raises `ExportError` while another process exports to the same file."""
        self._path, self._identity = path, identity
        self._file = path.open("a+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise ExportError(
                mismatch(str(path), "one export to a file", "another one in progress")
            ) from error
        except OSError:
            pass  # A file system without locks.

    def __enter__(self) -> _Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def n_done(self) -> int:
        """Return how many images an interrupted export of the same images has completed."""
        self._file.seek(0)
        try:
            stored = json.loads(self._file.read())
            return int(stored["n_done"]) if stored["identity"] == self._identity else 0
        except (ValueError, KeyError, TypeError):
            return 0

    def set(self, n_done: int) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._file.write(json.dumps({"identity": self._identity, "n_done": n_done}))
        self._file.flush()

    def remove(self) -> None:
        self._path.unlink()


def _write_and_compare(
    kind: Format, source: Source, partial: Path, journal: _Journal, on_progress: OnProgress
) -> None:
    writer, reader = _implementation(kind)
    _write(source, partial, journal, writer, on_progress)
    with contextlib.ExitStack() as stack:
        _compare(source, partial, stack.enter_context(reader(partial)), on_progress)


def _write(
    source: Source, partial: Path, journal: _Journal, writer_of: type[Writer], on_progress: OnProgress
) -> None:
    n_done = journal.n_done
    writer = None
    if 0 < n_done <= len(source):
        # Such as an HDF5 file whose writer was killed.
        with contextlib.suppress(OSError, ValueError, KeyError, RuntimeError):
            writer = writer_of(partial, source, n_done)
    if writer is None:
        n_done = 0
        journal.set(0)
        _remove(partial)
        writer = writer_of(partial, source, 0)
    with closing(writer):
        for first, end in _blocks(source, n_done, writer.step):
            writer.write(first, end)
            journal.set(end)
            on_progress("writing", end, len(source))


def _blocks(source: Source, start: int, step: int) -> Iterator[tuple[int, int]]:
    n = max(1, BLOCK_BYTES // source.image_bytes // step) * step
    return ((first, min(first + n, len(source))) for first in range(start, len(source), n))


def _compare(
    source: Source, partial: Path, read: Callable[[int, int], np.ndarray], on_progress: OnProgress
) -> None:
    for first, end in _blocks(source, 0, 1):
        found, expected = read(first, end), source.images(first, end)
        same = found.shape == expected.shape and found.dtype == expected.dtype
        if not same or not np.array_equal(found, expected, equal_nan=expected.dtype.kind == "f"):
            where = f"{partial}: images {first} to {end - 1}"
            raise ExportError(mismatch(where, "the pixels of the run", "others"))
        on_progress("comparing", end, len(source))


def _give_name(partial: Path, out: Path) -> None:
    """Rename the complete export. Raises `OutputExistsError` if the name is in use by now."""
    try:
        if partial.is_dir():
            if os.path.lexists(out):
                raise FileExistsError
            partial.rename(out)  # Over an empty directory at most.
            return
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        out.hardlink_to(partial)
        partial.unlink()
    except (FileExistsError, NotADirectoryError) as error:
        raise OutputExistsError(mismatch(str(out), "a new file", "an existing one")) from error
    except OSError as error:
        if error.errno == errno.ENOTEMPTY:
            raise OutputExistsError(mismatch(str(out), "a new directory", "an existing one")) from error
        if partial.is_dir():
            raise
        partial.rename(out)  # A file system without hard links.


def _remove(partial: Path) -> None:
    if partial.is_dir() and not partial.is_symlink():
        shutil.rmtree(partial)
    else:
        partial.unlink(missing_ok=True)
