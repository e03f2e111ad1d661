"""Make an NXmx file for a request: of the values that the run has, and those of the request."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stddaq.errors import ConfigError
from stddaq.files.application_metadata import Layer, Metadata, expected_images, layers_of_run, merge
from stddaq.files.nxmx import NXmxFile, create_nxmx_file
from stddaq.files.nxmx_rules import missing_for_nxmx
from stddaq.files.reading import open_run
from stddaq.files.run import read_run
from stddaq.text import mismatch
from stddaq.web.errors import RequestInvalidError
from stddaq.web.roots import Roots

ORIGIN = "POST /api/h5/create_nexus"


def make_nxmx(
    roots: Roots,
    base_path: Path,
    file_prefix: str,
    output: Path,
    metadata: Mapping[str, Any],
    incomplete: bool,
) -> NXmxFile:
    """Make the new file `output`. The files of the run have been checked; the mask is checked here."""
    run = open_run(base_path, file_prefix)
    account = run.account or {}
    try:
        layers = [*layers_of_run(account, run.nexus), Layer(ORIGIN, metadata)]
        merged = merge(layers, expected_images(account))
        _check_complete(merged, incomplete)
        _check_mask(roots, merged)
        return create_nxmx_file(
            output,
            read_run([raw.path for raw in run.raw_files]),
            merged,
            account=json.dumps(account) if account else None,
            incomplete=incomplete,
            roots=roots.directories,
        )
    except ConfigError as error:
        raise RequestInvalidError(str(error)) from error


def _check_complete(metadata: Metadata, incomplete: bool) -> None:
    missing = missing_for_nxmx(metadata)
    if missing and not incomplete:
        got, advice = f"none for {', '.join(missing)}", 'give them, or set "incomplete"'
        raise RequestInvalidError(mismatch("metadata", "values that NXmx requires", got, advice))


def _check_mask(roots: Roots, metadata: Metadata) -> None:
    """The name may come from the master file, which anybody may have written."""
    name = metadata.values.detector.mask_file
    if name is not None:
        path, colon, _ = name.rpartition(":")
        roots.existing_file(path if colon else name, "metadata.detector.mask_file")
