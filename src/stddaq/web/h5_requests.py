"""The requests for HDF5 files: describe them, read their rows, make a master file.

Only files below the roots are opened: links and `..` are resolved first, and the sources of virtual datasets
and the targets of external links must lie below a root as well. External storage, which could show the bytes
of any file, is refused. Runs in its own process, so that neither a hanging file system nor a crash of HDF5
stops the service.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from stddaq.errors import FileLayoutError, StdDaqError
from stddaq.files.aggregate import aggregate_run
from stddaq.files.file_info import DatasetInfo
from stddaq.files.info import describe, describe_datasets
from stddaq.files.names import find_run
from stddaq.files.nexus import IMAGE_ID
from stddaq.files.opening import DAMAGE, examine
from stddaq.files.sources import check_sources
from stddaq.open_directory import OutsideRootsError
from stddaq.text import mismatch
from stddaq.web.errors import FileAccessError, PathForbiddenError
from stddaq.web.roots import Roots, check_text, printable

MAX_DATASETS = 1000
# Their answer, Python objects, is a few times larger; `stddaq.daemon.isolation` limits it.
MAX_BYTES_OF_ROWS = 16 * 2**20
MAX_ATTRIBUTE_ITEMS = 1000
# Levels of virtual datasets over virtual datasets. Files of stddaq have one.
MAX_LEVELS = 4


def run_request(roots: Roots, name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Run the request `name`. Paths in `arguments` are resolved and exist.

    Raise `FileLayoutError`, `UnclosedFileError`, `OutputExistsError`, and the errors of `stddaq.web.errors`.
    """
    roots.note_open_files()
    try:
        return _REQUESTS[name](roots, **arguments)
    except OutsideRootsError as error:
        raise PathForbiddenError(str(error)) from error
    except StdDaqError:
        raise
    except PermissionError as error:
        raise PathForbiddenError(f"{error.filename}: {error.strerror}") from error
    except OSError as error:
        raise FileAccessError(f"{error.filename}: {error.strerror or error}") from error
    except DAMAGE as error:
        raise FileLayoutError(f"{name}: a file is damaged: {error}") from error


def get_metadata_status(roots: Roots, filename: Path) -> dict[str, Any]:
    """Return the kind of the file, and name, shape, type and attributes of its datasets."""
    path = filename
    with examine(path, allow_unclosed=True) as opened:
        found = describe_datasets(opened.file)
        for _, dataset in found:
            _check_sources(roots, path, dataset)
        datasets = [
            _as_json(info) | {"attributes": _attributes(dataset)} for info, dataset in found[:MAX_DATASETS]
        ]
        has_external_links = _check_external_links(roots, path, opened.file)
        roots.check_open_files()
    # `describe` would follow external links, whose targets are not checked.
    info = None if has_external_links else describe(path)
    return {
        "filename": str(path),
        "kind": info.kind if info else "other",
        "size": path.stat().st_size,
        "n_images": info.n_images if info else None,
        "closed": not opened.unclosed,
        "not_closed": info.unclosed if info else None,
        "missing": [str(source) for source in info.missing] if info else [],
        "not_of_this_run": info.differs if info else None,
        "n_datasets": len(found),
        "datasets": datasets,
    }


def _check_external_links(roots: Roots, path: Path, file: h5py.File) -> bool:
    """Return whether the file has links to others. Raise `PathForbiddenError` if one leaves the roots."""
    found: list[str] = []

    def add(_name: str, link: object) -> None:
        if isinstance(link, h5py.ExternalLink):
            found.append(link.filename)

    file.visititems_links(add)
    for name in found:
        _check_reference(roots, path, name)
    return bool(found)


def _as_json(info: DatasetInfo) -> dict[str, Any]:
    return {
        "name": info.name,
        "shape": list(info.shape),
        "dtype": info.dtype,
        "chunks": None if info.chunks is None else list(info.chunks),
        "filters": list(info.filters),
        "virtual": info.virtual,
    }


def read_metadata(roots: Roots, filename: Path, first_row: int, max_rows: int) -> dict[str, Any]:
    """Return the rows of all tables (one row per image) of the file, column by column."""
    path = filename
    with examine(path, allow_unclosed=True) as opened:
        _check_external_links(roots, path, opened.file)
        found = []
        for dataset in _datasets(opened.file):
            # Raw files have a table of epochs, too.
            if "image_id" not in (dataset.dtype.names or ()) or dataset.ndim != 1:
                continue
            _check_sources(roots, path, dataset)
            if IMAGE_ID in opened.file:
                check_sources(path, dataset)
            found.append(_table(dataset, first_row, max_rows))
        roots.check_open_files()
        if not found:
            raise FileLayoutError(
                mismatch(str(path), "rows of images, a one-dimensional compound dataset", "none")
            )
        return {"filename": str(path), "closed": not opened.unclosed, "tables": found}


def _table(dataset: h5py.Dataset, first_row: int, max_rows: int) -> dict[str, Any]:
    rows_that_fit = MAX_BYTES_OF_ROWS // max(1, dataset.dtype.itemsize)
    rows = dataset[first_row : first_row + min(max_rows, rows_that_fit)] if len(dataset) > first_row else None
    names = dataset.dtype.names or ()
    return {
        "name": dataset.name,
        "n_rows": len(dataset),
        "first_row": first_row,
        "columns": {name: _plain(rows[name]) if rows is not None else [] for name in names},
        "attributes": _attributes(dataset.parent),
    }


def read_image(roots: Roots, filename: Path, index: int) -> dict[str, Any]:
    """Return an image of the file as a `frame`; an image that is missing in a raw file is not good."""
    # Only this request needs what encodes images.
    from stddaq.web.h5_image import image_frame, images_of

    path = filename
    with examine(path, allow_unclosed=True) as opened:
        _check_external_links(roots, path, opened.file)
        images = images_of(opened.file)
        _check_sources(roots, path, images)
        if IMAGE_ID in opened.file:
            check_sources(path, images)
        encoded = image_frame(str(path), images, index)
        roots.check_open_files()
        return {"frame": encoded}


def create_interleaved_vds(
    roots: Roots, base_path: Path, output_file: str, file_prefix: str
) -> dict[str, Any]:
    """Make a master file over the raw files `<base_path>/<file_prefix><i>.h5`."""
    output = roots.new_file(base_path, output_file, "output_file")
    check_text(file_prefix, "file_prefix")
    run = find_run(base_path, file_prefix)
    for path in (*run.raw, *([run.metadata] if run.metadata else [])):
        _check_file(roots, roots.check(path))
    master = aggregate_run([base_path], output, file_prefix, roots=roots.directories)
    return {
        "filename": str(master.path),
        "n_images": master.n_images,
        "image_shape": list(master.image_shape),
        "dtype": str(master.dtype),
        "n_gaps": master.n_gaps,
        "raw_files": [str(path) for path in master.raw_files],
        "metadata_file": str(master.metadata_file) if master.metadata_file else None,
    }


def create_nexus(
    roots: Roots,
    base_path: Path,
    output_file: str | None,
    file_prefix: str,
    metadata: Mapping[str, Any],
    incomplete: bool,
) -> dict[str, Any]:
    """Make an NXmx file over the raw files `<base_path>/<file_prefix><i>.h5`.

    `metadata` replace single values of those that the run has.
    """
    # Only this request needs them.
    from stddaq.web.h5_nexus import make_nxmx

    check_text(file_prefix, "file_prefix")
    files = find_run(base_path, file_prefix)
    output = roots.new_file(base_path, output_file or files.nxmx.name, "output_file")
    for path in (*files.raw, *(path for path in (files.metadata, files.master) if path and path.exists())):
        _check_file(roots, roots.check(path))
    made = make_nxmx(roots, base_path, file_prefix, output, metadata, incomplete)
    return {
        "filename": str(made.path),
        "definition": None if made.missing else "NXmx",
        "missing": list(made.missing),
        "n_frames": made.n_frames,
        "n_mapped": made.n_mapped,
        "image_shape": list(made.image_shape),
        "dtype": str(made.dtype),
    }


def write_test_file(roots: Roots, base_path: Path) -> dict[str, Any]:
    """Write an HDF5 file without a name, and read it again."""
    del roots  # `base_path` has been checked.
    values = np.arange(1024, dtype=np.uint16)
    try:
        with tempfile.TemporaryFile(dir=base_path) as file:
            with h5py.File(file, "w") as written:
                written["values"] = values
            os.fsync(file.fileno())
            with h5py.File(file, "r") as read:
                found = read["values"]
                assert isinstance(found, h5py.Dataset)
                if not np.array_equal(found[()], values):
                    raise FileLayoutError(mismatch(str(base_path), "the values that were written", "others"))
            return {"n_bytes": file.seek(0, os.SEEK_END)}
    except PermissionError as error:
        expected = f"a directory in which uid {os.geteuid()} may create files"
        raise PathForbiddenError(mismatch(str(base_path), expected, "none")) from error
    except OSError as error:
        raise FileAccessError(f"{base_path}: {error.strerror or error}") from error


_REQUESTS: Mapping[str, Callable[..., dict[str, Any]]] = {
    "get_metadata_status": get_metadata_status,
    "read_image": read_image,
    "read_metadata": read_metadata,
    "create_interleaved_vds": create_interleaved_vds,
    "create_nexus": create_nexus,
    "write_test_file": write_test_file,
}


def _datasets(file: h5py.File) -> Iterator[h5py.Dataset]:
    """Yield the datasets of the file itself; links into other files are not followed."""
    return (dataset for _, dataset in describe_datasets(file))


def _check_file(roots: Roots, path: Path) -> None:
    with examine(path, allow_unclosed=True) as opened:
        if _check_external_links(roots, path, opened.file):
            raise PathForbiddenError(mismatch(str(path), "a raw file", "a file with links to other files"))
        for dataset in _datasets(opened.file):
            _check_sources(roots, path, dataset)
        roots.check_open_files()


def _check_sources(roots: Roots, path: Path, dataset: h5py.Dataset, level: int = 0) -> None:
    """Raise `PathForbiddenError` if the dataset shows bytes of files that are not below the roots."""
    if level > MAX_LEVELS:
        where = f"{path}: {dataset.name}"
        raise FileLayoutError(mismatch(where, f"at most {MAX_LEVELS} levels of virtual datasets", "more"))
    if dataset.external:
        where = printable(f"{path}: {dataset.name}")
        raise PathForbiddenError(mismatch(where, "values in the file itself", "external storage"))
    if not dataset.is_virtual:
        return
    creation = dataset.id.get_create_plist()
    for name in sorted({creation.get_virtual_filename(i) for i in range(creation.get_virtual_count())}):
        if name == ".":
            continue
        source = _check_reference(roots, path, name)
        if source != path and source.is_file():
            with examine(source, allow_unclosed=True) as opened:
                for inner in _datasets(opened.file):
                    _check_sources(roots, source, inner, level + 1)


def _check_reference(roots: Roots, path: Path, name: str) -> Path:
    """Return the file that HDF5 opens for `name` in the file `path`; it must be below a root."""
    if "%" in name:
        # A pattern: HDF5 puts numbers into it, which name other files than this one.
        raise PathForbiddenError(mismatch(printable(path), "names of files", f"pattern {printable(name)}"))
    check_text(name, "name of a file")
    # HDF5 tries the current directory when the file is not beside `path`.
    roots.check(Path.cwd() / name)
    return roots.check(path.parent / name)


def _attributes(member: h5py.HLObject) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in member.attrs:
        value = member.attrs[name]
        if not isinstance(value, h5py.Empty) and np.size(value) <= MAX_ATTRIBUTE_ITEMS:
            found[name] = _plain(value)
    return found


def _plain(value: Any) -> Any:
    """Return an HDF5 value as JSON; numbers that JSON cannot represent become null."""
    if isinstance(value, np.ndarray):
        return [_plain(item) for item in value.tolist()] if value.dtype.kind not in "iub" else value.tolist()
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | bool) or value is None else str(value)
