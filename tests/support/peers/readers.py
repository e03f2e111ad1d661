"""The environment with programs of the field that read runs; `.ci/make-readers` makes it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_PYTHON = Path(sys.prefix) / "readers" / "bin" / "python"


def run_readers_python(*arguments: object, directory: Path, timeout: float) -> str:
    """Run the Python of the environment. Return its standard output; skip the test without it.

    Temporary files, such as dask's locks, are in `directory`.
    """
    if not _PYTHON.exists():
        pytest.skip("needs the environment of readers, see .ci/make-readers")
    finished = subprocess.run(
        [_PYTHON, *map(str, arguments)],
        env=os.environ | {"TMPDIR": str(directory)},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout
