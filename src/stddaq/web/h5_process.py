"""The process of one request for HDF5 files: check its paths, and only then load HDF5, which is slow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stddaq.web.roots import Roots


def carry_out(roots: Sequence[str], name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Run the request `name` of `h5_requests` on files below `roots`."""
    allowed = Roots(roots)
    if "filename" in arguments:
        arguments["filename"] = allowed.existing_file(arguments["filename"], "filename")
    if "base_path" in arguments:
        arguments["base_path"] = allowed.existing_directory(arguments["base_path"], "base_path")
    from stddaq.web.h5_requests import run_request

    return run_request(allowed, name, arguments)
