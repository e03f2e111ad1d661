"""The NeXus metadata of a request for a master file, and the NXmx file that is made of them.

It is imported only for runs that have some, because pydantic takes 11 MB of memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

# `merge` would import it as the user of the run, who may be unable to read the installation.
import stddaq.run_metadata  # noqa: F401
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
from stddaq.files.nxmx import create_nxmx_file
from stddaq.files.nxmx_rules import missing_for_nxmx
from stddaq.files.run import RecordedRun
from stddaq.text import command_line, mismatch, shown
from stddaq.wire.std_daq import writer_action_pb2 as pb


def merged_metadata(create: pb.CreateMasterFile) -> Metadata:
    """Return the metadata of a request. Raise `ConfigError`."""
    account, layers = (parse_json(text.encode()) for text in (create.account, create.nexus))
    if not isinstance(account, dict) or not isinstance(layers, dict):
        raise ConfigError(mismatch("nexus", "objects by their origin", shown(layers)))
    known = [Layer(origin, content) for origin, content in layers.items()]
    return merge([layer_of_account(account), *known], expected_images(account))


def create_nxmx_as_requested(
    create: pb.CreateMasterFile, run: RecordedRun, metadata: Metadata, roots: Sequence[Path]
) -> None:
    """Create an NXmx file if one is wanted and its values are known; if that fails, log why."""
    if not create.nxmx or missing_for_nxmx(metadata):
        return
    try:
        create_nxmx_file(
            Path(create.nxmx),
            run,
            metadata,
            account=create.account,
            overwrite=create.overwrite,
            roots=roots,
        )
    except (StdDaqError, OSError) as error:
        command = command_line("stddaq", "nexus", create.path, "--definition", "NXmx")
        log.logger.warning("the NXmx file was not created: %s; %s tries it again", error, command)
