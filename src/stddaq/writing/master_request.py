"""Carries out the driver's request for a master file, as the user that this process acts as."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stddaq.files.master_file import write_master_file
from stddaq.files.run import read_run
from stddaq.wire.std_daq import writer_action_pb2 as pb


def create_as_requested(create: pb.CreateMasterFile, roots: Sequence[Path] = ()) -> None:
    """Create the master file, below one of `roots` if there are any. Raises `StdDaqError`, `OSError`.

    If an NXmx file is wanted and its values are known, create it as well; if that fails, log why.
    """
    metadata = None
    if create.nexus:
        # Not at the top; see `nexus_request`.
        from stddaq.writing.nexus_request import merged_metadata

        metadata = merged_metadata(create)
    run = read_run(
        [Path(file) for file in create.raw_files],
        Path(create.metadata_file) if create.metadata_file else None,
    )
    write_master_file(
        Path(create.path),
        run,
        account=create.account,
        nexus=metadata.as_json() if metadata else None,
        overwrite=create.overwrite,
        roots=roots,
    )
    if metadata:
        from stddaq.writing.nexus_request import create_nxmx_as_requested

        create_nxmx_as_requested(create, run, metadata, roots)


def load_libraries(create: pb.CreateMasterFile) -> None:
    """Import what a request needs, before a switch to a user who may be unable to read the installation."""
    if create.nexus:
        import stddaq.writing.nexus_request  # noqa: F401
