"""The files behind a virtual dataset: whether they still hold what it was made over.

HDF5 matches them by name only. It shows fill values where a file is missing or short, and another run's
images where it was replaced. A master file and a published images file therefore carry the id of their run
and the ids of their images; every reader checks both here before it shows anything.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
from h5py import h5a, h5g, h5s, h5t  # pyright: ignore[reportAttributeAccessIssue]

from stddaq.errors import FileLayoutError
from stddaq.files.nexus import DATA, ENTRY, IMAGE_ID, IMAGE_METADATA, PUBLISHED_IDS
from stddaq.files.opening import damage_named, open_file
from stddaq.files.raw_rows import Origin
from stddaq.files.virtual import mappings_of
from stddaq.text import mismatch, shown

# Attribute of /entry.
RUN_IDS = "run_ids"


class ImagesMissingError(FileLayoutError, OSError):
    """A file does not hold the images that another one, or a document, references.

    It is an `OSError`, so that databroker's `Filler` tries again for a moment: a network file system may show
    them late.
    """


class OtherRunError(FileLayoutError):
    """A file belongs to another run than the one that refers to it."""


def run_ids_of(file: h5py.File) -> frozenset[str]:
    """Return the ids of the runs whose raw files a file shows; none if they are not known."""
    entry = file.get(ENTRY)
    found = entry.attrs.get(RUN_IDS, ()) if isinstance(entry, h5py.Group) else ()
    return frozenset(text for value in np.atleast_1d(found) if (text := _text(value)))


def mark_with_run_ids(entry: h5g.GroupID, run_ids: Iterable[str | None]) -> None:
    """Write the ids of the runs of the raw files of a file, as far as they are known, to its `/entry`."""
    known = [run_id.encode() for run_id in dict.fromkeys(run_ids) if run_id]
    if known:
        values = np.array(known)
        space = h5s.create_simple(values.shape)
        h5a.create(entry, RUN_IDS.encode(), h5t.py_create(values.dtype, logical=True), space).write(values)


def check_run_id(path: Path, found: str | None, expected: Collection[str], of: Path) -> None:
    """Raise `OtherRunError` if the raw file `path` is of none of the runs that the file `of` shows.

    C++ files name no run.
    """
    if found is not None and expected and found not in expected:
        runs = " or ".join(shown(run_id) for run_id in sorted(expected))
        raise OtherRunError(mismatch(f"{path}: is not of the same run as {of}: run_id", runs, shown(found)))


def check_sources(path: Path, dataset: h5py.Dataset, start: int = 0, stop: int | None = None) -> None:
    """Check the files behind rows `start` to `stop` (not included) of `dataset` in the open file `path`.

    Raises `ImagesMissingError` when one is missing or short, and `FileLayoutError` when it holds other images
    than those that `path` was made over.
    """
    if not dataset.is_virtual:
        return
    stop = dataset.shape[0] if stop is None else stop
    file = dataset.file
    _check_each(path, dataset, start, stop)
    ids, rows = file.get(IMAGE_ID) or file.get(PUBLISHED_IDS), file.get(IMAGE_METADATA)
    if not (isinstance(ids, h5py.Dataset) and isinstance(rows, h5py.Dataset) and stop <= len(ids)):
        return
    if dataset.name not in (DATA, IMAGE_METADATA):
        return
    if dataset.name != IMAGE_METADATA:
        _check_each(path, rows, start, stop)
    with damage_named(path):
        expected, found = ids[start:stop], rows[start:stop]["image_id"]
    differing = np.flatnonzero(expected != found)
    if len(differing):
        raise FileLayoutError(
            mismatch(
                f"{path}: its raw files do not hold the images that it was made over: row "
                f"{start + differing[0]}",
                f"image {expected[differing[0]]}",
                f"image {found[differing[0]]}",
            )
        )


def _check_each(path: Path, dataset: h5py.Dataset, start: int, stop: int) -> None:
    run_ids = run_ids_of(dataset.file)
    n_rows: dict[tuple[str, str], int] = {}
    for mapping in mappings_of(dataset):
        (first, *_), (last, *_) = mapping.places.get_select_bounds()
        if first < stop and last >= start and mapping.file != ".":
            key = mapping.file, mapping.dataset
            n_rows[key] = max(n_rows.get(key, 0), mapping.rows.get_select_bounds()[1][0] + 1)
    for (name, member), n in n_rows.items():
        raw = path.parent / name
        with open_source(raw, member, n) as rows:
            check_run_id(raw, Origin.of(rows.parent).run_id, run_ids, path)


@contextmanager
def open_source(path: Path, dataset: str, n_rows: int) -> Iterator[h5py.Dataset]:
    """Open a dataset of a raw or metadata file. Raises `ImagesMissingError` if it has less than `n_rows`."""
    if not path.exists():
        raise ImagesMissingError(f"{path}: is missing, no such file")
    with open_file(path, allow_unclosed=True) as opened:
        rows = opened.file.get(dataset)
        if not isinstance(rows, h5py.Dataset) or not rows.shape:
            raise ImagesMissingError(mismatch(str(path), f"images in {dataset}", "none"))
        if rows.shape[0] < n_rows:
            raise ImagesMissingError(mismatch(f"{path}: is short", f"{n_rows} images", str(rows.shape[0])))
        yield rows


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
