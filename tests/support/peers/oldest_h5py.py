"""The oldest h5py that stddaq allows, with its own HDF5, for the services and commands of a test.

`.ci/make-oldest-h5py` installs it beside the environment.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.processes.recording import REPOSITORY

_DIRECTORY = Path(sys.prefix) / "oldest-h5py"


def oldest_h5py() -> dict[str, str]:
    """Return the environment variables that make Python import it. Skip the test if it is not installed."""
    if not (_DIRECTORY / "h5py").is_dir():
        pytest.skip("needs the oldest h5py, see .ci/make-oldest-h5py")
    return {"PYTHONPATH": str(_DIRECTORY)}


def run_python(*arguments: object, timeout: float) -> str:
    """Run this environment's Python in the repository, with the oldest h5py. Return its standard output."""
    finished = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=os.environ | oldest_h5py(),
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout
    return finished.stdout
