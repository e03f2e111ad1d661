"""`stddaq nexus`: a recorded run and its metadata become an NXmx file."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from support.data.nexus_metadata import SCAN
from support.data.raw_files import RunSpec, dataset, pixels, stream, write_run
from support.processes.deployment import Deployment
from support.processes.real_driver import RealDriver

from stddaq.cli import main
from stddaq.client import DriverClient

SPEC = RunSpec(shape=(6, 8))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return the directory of a run of 9 images, which also has the file of its metadata."""
    write_run(tmp_path, stream(range(9)), SPEC)
    (tmp_path / "meta.json").write_text(json.dumps(SCAN))
    return tmp_path


def nexus(*arguments: object) -> int | str | None:
    try:
        return main(["nexus", "--definition", "NXmx", *map(str, arguments)])
    except SystemExit as ended:
        return ended.code


def text(file: h5py.File, name: str) -> str:
    return str(dataset(file, f"entry/{name}").asstr()[()])


def test_recorded_run_becomes_a_file(deployment: Deployment, directory: Path):
    driver = RealDriver.start(deployment)
    driver.publish_continuously(100)
    with DriverClient(driver.url) as client:
        client.start(directory, n_image=11)
        client.wait_until_saved(timeout=60)
    content: dict[str, Any] = {key: part for key, part in SCAN.items() if not key.endswith("_time")}
    (directory / "meta.json").write_text(json.dumps(content))
    made = deployment.run(
        *(deployment.stddaq, "nexus", directory, "--definition", "NXmx"),
        *("--from", directory / "meta.json", "--set", "detector.frame_time_s=2"),
    )
    assert made.wait() == 0
    assert made.stdout == [f"{directory}/file_master.h5: 11 frames of 32x48 uint16"]
    with h5py.File(directory / "file_master.h5") as file, h5py.File(directory / "fileMaster.h5") as master:
        np.testing.assert_array_equal(
            dataset(file, "entry/data/data")[()], dataset(master, "entry/data/data")[()]
        )
        account = json.loads(text(file, "stddaq/account"))
        start, end, estimated = (
            datetime.fromisoformat(text(file, name))
            for name in ("start_time", "end_time", "end_time_estimated")
        )
        assert datetime.fromisoformat(account["started_at"]) == start < end
        assert estimated - start == timedelta(seconds=22)


def test_values_of_options_replace_those_of_files(run: Path, capsys: pytest.CaptureFixture[str]):
    (run / "more.json").write_text('{"sample": {"name": "thaumatin"}, "detector": {"distance_m": 0.3}}')
    made = nexus(
        *(run / "file1.h5", "--from", run / "meta.json", "--from", run / "more.json"),
        *("--set", "detector.distance_m=0.4", "-o", run / "mine.h5"),
    )
    assert made == 0
    assert capsys.readouterr().out == f"{run}/mine.h5: 9 frames of 6x8 uint16\n"
    with h5py.File(run / "mine.h5") as file:
        assert text(file, "sample/name") == "thaumatin"
        assert dataset(file, "entry/instrument/detector/distance")[()] == 0.4


def test_all_missing_values_are_named_in_one_line(run: Path, capsys: pytest.CaptureFixture[str]):
    assert nexus(run, "--set", "sample.name=lysozyme") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"stddaq nexus: error: {run}/file_master.h5: expected values that NXmx requires, ")
    for key in ("start_time", "source.name", "detector.distance_m", "beam.energy_kev", "end_time"):
        assert f" {key}" in line
    assert "sample.name" not in line
    assert not (run / "file_master.h5").exists()


def test_incomplete_file_is_written_on_request(run: Path, capsys: pytest.CaptureFixture[str]):
    content = {key: part for key, part in SCAN.items() if key not in ("beam", "sample")}
    (run / "meta.json").write_text(json.dumps(content))
    assert nexus(run, "--from", run / "meta.json", "--incomplete") == 0
    assert capsys.readouterr().out == (
        f"{run}/file_master.h5: 9 frames of 6x8 uint16; not NXmx: without sample.name, beam.energy_kev\n"
    )
    with h5py.File(run / "file_master.h5") as file:
        assert "entry/definition" not in file
        np.testing.assert_array_equal(
            dataset(file, "entry/data/data")[()], pixels(stream(range(9)), SPEC.shape)
        )


def test_existing_file_is_replaced_only_on_request(run: Path, capsys: pytest.CaptureFixture[str]):
    assert nexus(run, "--from", run / "meta.json") == 0
    before = (run / "file_master.h5").read_bytes()
    assert nexus(run, "--from", run / "meta.json") == 2
    assert "expected a new file, got an existing one" in capsys.readouterr().err
    assert (run / "file_master.h5").read_bytes() == before
    # Of the file itself, which is one of the run's.
    assert nexus(run / "file_master.h5", "--from", run / "meta.json", "--overwrite") == 0
    assert (run / "file_master.h5").read_bytes() != before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--from", "none.json"], "none.json: cannot be read: No such file or directory"),
        (["--set", "beam.energy=1"], "--set: beam.energy: unknown field"),
        (["--set", "detector.mask_file=none.npy"], "none.npy: cannot be read"),
        (["--set", "detector.sensor_material=LuAG"], "detector.sensor_material: expected one of Si"),
        (["-o", "absent/x.h5"], "absent"),
        (["-o", "file0.h5", "--overwrite"], "file0.h5: expected a new file, or one to replace that shows"),
        (["-o", "file0.h5"], "file0.h5: expected a name of no other file of a run"),
        (["-o", "meta.json", "--overwrite"], "meta.json: expected a new file, or one to replace that shows"),
        (["-o", "fileMaster.h5", "--overwrite"], "fileMaster.h5: expected a name of no other file"),
    ],
)
def test_refusals_are_one_line(
    run: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(run)
    before = sorted(path.name for path in run.iterdir())
    assert nexus(".", "--from", "meta.json", *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert sorted(path.name for path in run.iterdir()) == before


def test_run_that_cannot_be_read_is_one_line(run: Path, capsys: pytest.CaptureFixture[str]):
    (run / "file1.h5").unlink()
    assert nexus(run, "--from", run / "meta.json") == 2
    assert "file1.h5: is missing" in capsys.readouterr().err


def nxtomo(*arguments: object) -> int | str | None:
    try:
        return main(["nexus", "--definition", "NXtomo", "--set", "sample.name=bone", *map(str, arguments)])
    except SystemExit as ended:
        return ended.code


def test_kinds_of_a_single_run_are_numbers_of_images(run: Path, capsys: pytest.CaptureFixture[str]):
    assert nxtomo(run, "--keys", "dark:2,flat:3,projection:4", "--angles", "0:180") == 0
    assert capsys.readouterr().out == (
        f"{run}/file_tomo.h5: 4 projection, 3 flat, 2 dark images of 6x8 uint16\n"
    )
    with h5py.File(run / "file_tomo.h5") as file:
        angles = dataset(file, "entry0000/sample/rotation_angle")[()]
        assert angles.tolist() == [0, 0, 0, 0, 0, 0, 45, 90, 135]
        assert (
            dataset(file, "entry0000/instrument/detector/image_key")[()].tolist()
            == [2] * 2 + [1] * 3 + [0] * 4
        )


def test_kinds_of_several_runs_are_named(run: Path, capsys: pytest.CaptureFixture[str]):
    for name in ("darks", "flats"):
        (run / name).mkdir()
        write_run(run / name, stream(range(3)), SPEC)
    np.save(run / "angles.npy", np.arange(9.0))
    made = nxtomo(
        f"dark={run}/darks", f"flat={run}/flats", f"projection={run}", "--angles", run / "angles.npy"
    )
    assert made == 0
    assert capsys.readouterr().out == (
        f"{run}/file_tomo.h5: 9 projection, 3 flat, 3 dark images of 6x8 uint16\n"
    )


def test_what_programs_take_wrongly_is_a_warning(run: Path, capsys: pytest.CaptureFixture[str]):
    np.save(run / "angles.npy", np.full(8, 45.0))
    keys = "projection:4,flat:1,projection:4"
    assert nxtomo(run, "--keys", keys, "--angles", run / "angles.npy") == 0
    path = run / "file_tomo.h5"
    assert capsys.readouterr().err.splitlines() == [
        f"stddaq nexus: warning: {path}: expected projections at several angles, got all 8 at 45 degrees",
        f"stddaq nexus: warning: {path}: expected projections that follow each other, "
        "got 1 flats or darks among them; httomo takes them for projections",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected KIND=RUN for each run, of the kinds projection, flat and dark, or --keys"),
        (["--keys", "dark:2"], "--keys: expected kinds of the 9 images of the run, got those of 2"),
        (["--keys", "dim:9"], "--keys: expected KIND:NUMBER,... such as dark:5,flat:7,projection:30"),
        (["--keys", "projection:9"], "--angles: expected START:STOP in degrees, or FILE.npy, got none"),
        (["--keys", "projection:9", "--angles", "0:x"], "--angles: expected START:STOP in degrees"),
        (["--keys", "projection:9", "--angles", "0:0"], "--angles: expected another STOP than START for 9"),
        (["--keys", "dark:9", "--angles", "0:180"], "expected a good projection among the images, got none"),
        (["--keys", "projection:9", "--angles", "no.npy"], "no.npy: cannot be read: No such file"),
    ],
)
def test_invalid_kinds_and_angles_are_refused(
    run: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    assert nxtomo(run, *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (run / "file_tomo.h5").exists()


def test_a_kind_without_a_run_is_refused(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    # An empty path would be the current directory.
    monkeypatch.chdir(run)
    assert nxtomo("dark=", "--angles", "0:180") == 2
    assert "dark=: expected dark=RUN, got no run" in capsys.readouterr().err
