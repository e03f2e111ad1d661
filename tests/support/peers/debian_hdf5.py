"""Debian's h5py and HDF5 tools, years older than those of this environment, as independent readers.

`.ci/make-debian-packages` unpacks them beside the environment; installed packages work as well.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PYTHON = "/usr/bin/python3"
# Prints the datasets of each file with the values that HDF5 shows.
_READ = """
import json, sys
sys.path[:0] = sys.argv[1:2]
import h5py
def values(dataset):
    if dataset.dtype.names:
        rows = dataset[()]
        return {name: rows[name].tolist() for name in dataset.dtype.names}
    return dataset[()].tolist() if dataset.dtype.kind in "uif" else str(dataset[()])
def read(path):
    found = {}
    with h5py.File(path, "r") as file:
        def note(name, item):
            if isinstance(item, h5py.Dataset):
                found[name] = values(item)
        file.visititems(note)
    return found
print(json.dumps({"version": h5py.version.hdf5_version, "files": {p: read(p) for p in sys.argv[2:]}}))
"""


class DebianHdf5:
    """Runs Debian's Python with its h5py, and its HDF5 tools."""

    def __init__(self) -> None:
        """Skip the test if the packages are neither unpacked nor installed."""
        self._root = Path(sys.prefix) / "debian-hdf5"
        libraries = [
            str(path)
            for triplet in self._root.glob("usr/lib/*-linux-gnu*")
            for path in (triplet, triplet / "blas", triplet / "lapack")
        ]
        self._env = os.environ | {"LD_LIBRARY_PATH": ":".join(libraries)}
        self._env.pop("PYTHONPATH", None)
        if not Path(PYTHON).exists() or self._python("import h5py").returncode:
            pytest.skip("needs the packages python3-h5py and hdf5-tools, see .ci/make-debian-packages")

    def _python(self, program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        packages = self._root / "usr" / "lib" / "python3" / "dist-packages"
        program = f"import sys; sys.path.insert(0, {str(packages)!r})\n{program}"
        return subprocess.run(
            [PYTHON, "-I", "-c", program, str(packages), *map(str, arguments)],
            env=self._env,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    def read(self, *paths: Path) -> list[dict[str, Any]]:
        """Return the datasets of each file by name, values as lists. Fail the test when HDF5 fails."""
        result = self._python(_READ, *paths)
        assert result.returncode == 0, result.stderr
        answer = json.loads(result.stdout)
        assert answer["version"] < "1.15", "this HDF5 is not older than that of the environment"
        return [answer["files"][str(path)] for path in paths]

    def dump(self, path: Path, *options: str) -> str:
        """Return what `h5dump` prints about a file. Fail the test when h5dump fails."""
        unpacked = self._root / "usr" / "bin" / "h5dump"
        program = str(unpacked) if unpacked.exists() else "h5dump"
        result = subprocess.run(
            [program, *options, str(path)],
            env=self._env,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout
