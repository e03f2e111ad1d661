"""The process of one request for HDF5 files: check its paths, load HDF5, drop all rights, carry it out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stddaq.daemon.user_switch import drop_rights
from stddaq.text import mismatch
from stddaq.web.errors import PathForbiddenError
from stddaq.web.roots import Roots


def carry_out(roots: Sequence[str], name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Run the request `name` of `h5_requests` on files below `roots`."""
    allowed = Roots(roots)
    if "filename" in arguments:
        arguments["filename"] = allowed.existing_file(arguments["filename"], "filename")
    if "base_path" in arguments:
        arguments["base_path"] = allowed.existing_directory(arguments["base_path"], "base_path")
    # Imported after the checks, because HDF5 is slow to load, but with all rights, because other
    # users may be unable to read the installation.
    from stddaq.web.h5_requests import run_request

    path = arguments.get("filename") or arguments["base_path"]
    if os.geteuid() == 0:
        # What a file of a user does to HDF5 happens with the rights of that user.
        drop_rights(_owner(path, arguments.get("file_prefix", "")))
    # HDF5 looks for the sources of a virtual dataset in the current directory, too.
    try:
        os.chdir(path if path.is_dir() else path.parent)
    except PermissionError as error:
        expected = f"a directory that uid {os.geteuid()} may enter"
        raise PathForbiddenError(mismatch(str(path), expected, "another one")) from error
    return run_request(allowed, name, arguments)


def _owner(path: Path, file_prefix: str) -> int:
    """Return the owner of a file; of a directory, the first owner of it and its raw files who is not root."""
    owner = path.stat().st_uid
    if owner or not path.is_dir():
        return owner
    raw_files = (file for file in path.iterdir() if file.name.startswith(file_prefix))
    return next((uid for file in raw_files if (uid := file.lstat().st_uid)), 0)
