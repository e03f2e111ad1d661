"""`stddaq aggregate` and its REST call: create a master file over existing raw files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stddaq.errors import FileLayoutError
from stddaq.files.master_file import MasterFile, create_master_file
from stddaq.files.names import find_run, master_file_name, metadata_file_name, nxmx_file_name


def aggregate_run(
    paths: Sequence[Path],
    output: Path | None = None,
    prefix: str | None = None,
    overwrite: bool = False,
    roots: Sequence[Path] = (),
) -> MasterFile:
    """Create the master file of a run, also of one that C++ services recorded.

    `paths` is a directory (with `prefix`, default "file"), any one file of the run, or several raw files. A
    metadata file among several is used, a master or NXmx file is ignored. Without `output` the master file is
    created beside the raw files. It must be below one of `roots`, if there are any. Raises `FileLayoutError`,
    `OutputExistsError`, `OutsideRootsError`.
    """
    if not paths:
        raise FileLayoutError("found no path, expected a directory or the raw files of a run")
    if len(paths) == 1:
        run = find_run(paths[0], prefix)
        return create_master_file(
            output or run.master, run.raw, metadata_file=run.metadata, overwrite=overwrite, roots=roots
        )
    metadata = [path for path in paths if path.name.endswith(metadata_file_name(""))]
    masters = [path for path in paths if path.name.endswith((master_file_name(""), nxmx_file_name("")))]
    if len(metadata) > 1:
        raise FileLayoutError(f"{metadata[1]}: expected one metadata file, got a second beside {metadata[0]}")
    raw = [path for path in paths if path not in metadata and path not in masters]
    if output is None:
        output = find_run(raw[0] if raw else paths[0]).master
    return create_master_file(
        output, raw, metadata_file=metadata[0] if metadata else None, overwrite=overwrite, roots=roots
    )
