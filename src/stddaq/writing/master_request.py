"""Carries out the driver's request for a master file, as the user that this process acts as."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stddaq.files.master_file import create_master_file
from stddaq.wire.std_daq import writer_action_pb2 as pb


def create_as_requested(create: pb.CreateMasterFile, roots: Sequence[Path] = ()) -> None:
    """Create the master file, below one of `roots` if there are any. Raises `StdDaqError`, `OSError`."""
    create_master_file(
        Path(create.path),
        [Path(file) for file in create.raw_files],
        metadata_file=Path(create.metadata_file) if create.metadata_file else None,
        account=create.account,
        overwrite=create.overwrite,
        roots=roots,
    )
