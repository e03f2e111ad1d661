"""Programs of the field, in an environment of their own, open master, NXmx and exported files."""

from __future__ import annotations

import json
from ctypes.util import find_library
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.data.nexus_metadata import SCAN, make_nxmx, metadata
from support.data.raw_files import RunSpec, bitshuffle, blosc2, pixels, stream, write_run
from support.peers.readers import run_h5wasm, run_readers_python

from stddaq.files.export.run import export_run
from stddaq.files.master_file import create_master_file

pytestmark = pytest.mark.external

SHAPE = (60, 96)
FILTERS: dict[str, Any] = {"plain": None, "lz4": bitshuffle(), "blosc2": blosc2()}

# Opens a file in NeXpy and plots it as a double click does. NeXpy takes the standard output for itself.
NEXPY = """
import argparse, json, os, sys
path, output = sys.argv[1:]
from nexpy.gui.consoleapp import NXConsoleApp
app = NXConsoleApp()
app.initialize(argparse.Namespace(faulthandler=False, restore=False, filenames=[path]))
try:
    app.tree[list(app.tree.entries)[0]].plot()
    view = app.window.plotview
    found = {"ndim": view.ndim, "shown": view.v.tolist()}
except Exception as error:
    found = {"error": str(error)}
with open(output, "w") as file:
    json.dump(found, file)
os._exit(0)
"""

# Reads a frame of each file by fabio, and integrates it over the angle around the beam.
PYFAI = """
import sys
import fabio
import numpy as np
from pyFAI.integrator.azimuthal import AzimuthalIntegrator
frame, output, *paths = sys.argv[1:]
pixel = 7.5e-5
place = {"dist": 0.2, "poni1": 30.25 * pixel, "poni2": 48.5 * pixel}
integrator = AzimuthalIntegrator(**place, pixel1=pixel, pixel2=pixel, wavelength=1e-10)
rows = []
for path in paths:
    read = fabio.open(path)
    result = integrator.integrate1d(read.get_frame(int(frame)).data, 20, unit="r_mm")
    rows.append([read.nframes, result.sum_signal.sum(), result.sum_normalization.sum()])
np.save(output, rows)
"""


def run_files(directory: Path, n_images: int, filter: Any = None, shape: tuple[int, int] = SHAPE) -> Path:
    """Write a run with its master file. Return the path of the master file."""
    raw = write_run(directory, stream(range(n_images)), RunSpec(n_writers=3, shape=shape, filter=filter))
    return create_master_file(directory / "fileMaster.h5", raw, account='{"run_id": "run-1"}').path


def nexpy(path: Path, directory: Path) -> dict[str, Any]:
    """Return what NeXpy shows of a file; skip the test without the library that Qt needs."""
    if find_library("GL") is None:
        pytest.skip("needs Debian's libgl1")
    output = directory / "nexpy.json"
    # The home directory gets NeXpy's settings.
    environment = {"HOME": str(directory), "QT_QPA_PLATFORM": "offscreen"}
    run_readers_python("-c", NEXPY, path, output, directory=directory, timeout=100, environment=environment)
    return json.loads(output.read_text())


def test_nexpy_plots_a_master_file_and_an_export(tmp_path: Path) -> None:
    master = run_files(tmp_path, 12, FILTERS["lz4"])
    export_run(master, tmp_path / "export.h5")
    for path in (master, tmp_path / "export.h5"):
        found = nexpy(path, tmp_path)
        assert found.get("error") is None
        assert found["ndim"] == 3
        np.testing.assert_array_equal(found["shown"], pixels(stream([0]), SHAPE)[0])


def test_nexpy_refuses_files_that_map_several_images_at_once_and_plots_their_export(tmp_path: Path) -> None:
    (tmp_path / "nxmx").mkdir()
    scan = make_nxmx(tmp_path / "nxmx", stream(range(12)), RunSpec(n_writers=3, shape=SHAPE), metadata(SCAN))
    # Master files map images one by one up to 2048.
    master = run_files(tmp_path, 2100, shape=(4, 6))
    for path in (scan.path, master):
        assert nexpy(path, tmp_path) == {"error": "Defined axes not compatible with the signal"}
    export_run(master, tmp_path / "export.h5")
    np.testing.assert_array_equal(
        nexpy(tmp_path / "export.h5", tmp_path)["shown"], pixels(stream([0]), (4, 6))[0]
    )


def test_pyfai_integrates_the_frames_of_every_file(tmp_path: Path) -> None:
    paths: list[Path] = []
    for name, filter in FILTERS.items():
        directory = tmp_path / name
        (directory / "nxmx").mkdir(parents=True)
        spec = RunSpec(n_writers=3, shape=SHAPE, filter=filter)
        scan = make_nxmx(directory / "nxmx", stream(range(12)), spec, metadata(SCAN)).path
        master = run_files(directory, 12, filter)
        export_run(master, directory / "export.h5")
        paths += [master, scan, directory / "export.h5"]
    run_readers_python("-c", PYFAI, 7, tmp_path / "sums.npy", *paths, directory=tmp_path, timeout=100)
    for n_frames, signal, normalization in np.load(tmp_path / "sums.npy"):
        assert n_frames == 12
        assert signal == pytest.approx(pixels(stream([7]), SHAPE).sum(dtype=float), rel=1e-4)
        assert 0 < normalization <= SHAPE[0] * SHAPE[1] * 1.0001


def test_punx_finds_nothing_but_the_axes_without_values(tmp_path: Path) -> None:
    """It does not know that `.` stands for an axis without values, as the NeXus manual says."""
    (tmp_path / "nxmx").mkdir()
    scan = make_nxmx(tmp_path / "nxmx", stream(range(12)), RunSpec(shape=SHAPE), metadata(SCAN))
    for path in (run_files(tmp_path, 12), scan.path):
        report = run_readers_python("-m", "punx.main", "validate", path, directory=tmp_path, timeout=100)
        errors = [
            line.split() for line in report.splitlines() if " ERROR " in line and "violates" not in line
        ]
        assert {(line[0], line[-4:] == ["a", "valid", "NeXus", "name"]) for line in errors} == {
            ("/entry/data@axes", True)
        }


@pytest.mark.parametrize("filter", FILTERS)
def test_h5wasm_of_browsers_reads_every_frame(tmp_path: Path, filter: str) -> None:
    spec = RunSpec(n_writers=3, shape=(8, 6), filter=FILTERS[filter])
    (tmp_path / "nxmx").mkdir()
    scan = make_nxmx(tmp_path / "nxmx", stream(range(12)), spec, metadata(SCAN)).path
    master = run_files(tmp_path, 12, FILTERS[filter], shape=(8, 6))
    export_run(master, tmp_path / "export.h5")
    for path in (master, scan, tmp_path / "export.h5"):
        frames = run_h5wasm(path, timeout=100)
        np.testing.assert_array_equal(np.reshape(frames, (12, 8, 6)), pixels(stream(range(12)), (8, 6)))
