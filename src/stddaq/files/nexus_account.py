"""The group `/entry/stddaq` of a file over raw files: which they are, and what the driver recorded."""

from __future__ import annotations

import json
from pathlib import Path

import h5py

import stddaq
from stddaq.files.nexus import ACCOUNT, EPOCHS, METADATA, RAW_FILES, nexus_group, put_value
from stddaq.files.opening import relative_name
from stddaq.files.run import RecordedRun


def write_account(entry: h5py.Group, run: RecordedRun, directory: Path, account: str | None) -> None:
    """Write the group for a file in `directory`. `account` is the JSON object of the driver."""
    group = nexus_group(entry, "stddaq", "NXcollection")
    put_value(group, "version", stddaq.__version__)
    put_value(group, RAW_FILES, [relative_name(raw.path, directory) for raw in run.raw_files])
    if run.order.image_division is not None:
        put_value(group, "image_division", run.order.image_division)
    if run.order.n_epochs > 1:
        put_value(group, EPOCHS, run.order.epochs)
    if account:
        put_value(group, ACCOUNT, account)
        if metadata := json.loads(account).get("metadata"):
            put_value(group, METADATA, json.dumps(metadata))
