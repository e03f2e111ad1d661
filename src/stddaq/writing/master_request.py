"""Carries out the driver's request for a master file, as whatever user this process acts as."""

from __future__ import annotations

from pathlib import Path

from stddaq.files.master_file import create_master_file
from stddaq.wire.std_daq import writer_action_pb2 as pb


def create_as_asked(action: pb.CreateMasterFile) -> None:
    """Make the master file. Raises `StdDaqError`, `OSError`."""
    create_master_file(
        Path(action.path),
        [Path(file) for file in action.raw_files],
        metadata_file=Path(action.metadata_file) if action.metadata_file else None,
        account=action.account,
        overwrite=action.overwrite,
    )
