"""Carries out the driver's request for a master file, as the user that this process acts as."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

from stddaq.config.model import parse_json
from stddaq.daemon import log
from stddaq.errors import ConfigError, StdDaqError
from stddaq.files.application_metadata import (
    Layer,
    Metadata,
    expected_images,
    layer_of_account,
    merge,
)
from stddaq.files.master_file import write_master_file
from stddaq.files.nxmx import create_nxmx_file
from stddaq.files.nxmx_rules import missing_for_nxmx
from stddaq.files.run import RecordedRun, read_run
from stddaq.text import command_line, mismatch, shown
from stddaq.wire.std_daq import writer_action_pb2 as pb


def create_as_requested(create: pb.CreateMasterFile, roots: Sequence[Path] = ()) -> None:
    """Create the master file, below one of `roots` if there are any. Raises `StdDaqError`, `OSError`.

    If an NXmx file is wanted and its values are known, create it as well; if that fails, log why.
    """
    metadata = _metadata(create) if create.nexus else None
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
    if metadata and create.nxmx and not missing_for_nxmx(metadata):
        try:
            _create_nxmx(create, run, metadata, roots)
        except (StdDaqError, OSError) as error:
            command = command_line("stddaq", "nexus", create.path, "--definition", "NXmx")
            log.logger.warning("the NXmx file was not created: %s; %s tries it again", error, command)


def load_libraries(create: pb.CreateMasterFile) -> None:
    """Import what a request needs, before a switch to a user who may be unable to read the installation."""
    # pydantic takes 11 MB of memory.
    if create.nexus:
        importlib.import_module("stddaq.run_metadata")


def _metadata(create: pb.CreateMasterFile) -> Metadata:
    account, layers = (parse_json(text.encode()) for text in (create.account, create.nexus))
    if not isinstance(account, dict) or not isinstance(layers, dict):
        raise ConfigError(mismatch("nexus", "objects by their origin", shown(layers)))
    known = [Layer(origin, content) for origin, content in layers.items()]
    return merge([layer_of_account(account), *known], expected_images(account))


def _create_nxmx(
    create: pb.CreateMasterFile, run: RecordedRun, metadata: Metadata, roots: Sequence[Path]
) -> None:
    create_nxmx_file(
        Path(create.nxmx),
        run,
        metadata,
        account=create.account,
        overwrite=create.overwrite,
        roots=roots,
    )
