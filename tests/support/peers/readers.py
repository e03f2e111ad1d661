"""The environment with programs of the field that read runs; `.ci/make-readers` makes it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_PROGRAMS = Path(sys.prefix) / "readers" / "bin"


def run_readers_python(*arguments: object, directory: Path, timeout: float, n_mpi_processes: int = 0) -> str:
    """Run the Python of the environment. Return its standard output; skip the test without it.

    Temporary files, such as dask's locks, are in `directory`. With `n_mpi_processes`, MPI starts as many.
    """
    python = _PROGRAMS / "python"
    if not python.exists():
        pytest.skip("needs the environment of readers, see .ci/make-readers")
    mpi = [_PROGRAMS / "mpiexec", "-n", str(n_mpi_processes)] if n_mpi_processes else []
    finished = subprocess.run(
        [*mpi, python, *map(str, arguments)],
        env=os.environ | {"TMPDIR": str(directory)},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout
