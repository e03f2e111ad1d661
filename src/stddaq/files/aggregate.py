"""`stddaq aggregate` and the REST call behind it: a master file over raw files that exist already."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stddaq.errors import FileLayoutError
from stddaq.files.master_file import MasterFile, create_master_file
from stddaq.files.names import find_run, master_file_name, metadata_file_name


def aggregate_run(
    paths: Sequence[Path],
    output: Path | None = None,
    prefix: str | None = None,
    overwrite: bool = False,
) -> MasterFile:
    """Make the master file of a run, C++-made ones included.

    `paths` is a directory (with `prefix`, default "file"), any one file of the run, or several raw files. Of
    several, the metadata file is used when it is among them, and a master file is passed over. Without
    `output` the master file is made beside the raw files. Raises `FileLayoutError` and `OutputExistsError`.
    """
    if not paths:
        raise FileLayoutError("found no path, expected a directory or the raw files of a run")
    if len(paths) == 1:
        run = find_run(paths[0], prefix)
        return create_master_file(
            output or run.master, run.raw, metadata_file=run.metadata, overwrite=overwrite
        )
    metadata = [path for path in paths if path.name.endswith(metadata_file_name(""))]
    masters = [path for path in paths if path.name.endswith(master_file_name(""))]
    if len(metadata) > 1:
        raise FileLayoutError(
            f"{metadata[1]}: is a second metadata file beside {metadata[0]}, allowed is one"
        )
    raw = [path for path in paths if path not in metadata and path not in masters]
    if output is None:
        output = find_run(raw[0] if raw else paths[0]).master
    return create_master_file(
        output, raw, metadata_file=metadata[0] if metadata else None, overwrite=overwrite
    )
