"""The tomography plan makes an NXtomo file of what its documents say."""

from __future__ import annotations

import logging
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from bluesky import RunEngine
from bluesky.callbacks.json_writer import JSONLinesWriter
from bluesky.plans import count
from bluesky.utils import RunEngineInterrupted
from ophyd.sim import SynAxis
from support.assertions.plans import Documents, PointCamera, pausing, stream_images
from support.data.raw_files import dataset
from support.peers.readers import read_by_nxtomo

from stddaq.cli import main
from stddaq.files.nxtomo import IMAGES, ImageKey
from stddaq_ophyd import StdDaqDetector
from stddaq_ophyd.async_detector import AsyncStdDaqDetector
from stddaq_ophyd.plans import tomography

MakeDetector = Callable[..., tuple[StdDaqDetector, PointCamera]]
MakeAsyncDetector = Callable[..., tuple[AsyncStdDaqDetector, PointCamera]]

DETECTOR = "entry0000/instrument/detector"
KEYS = np.repeat([ImageKey.dark, ImageKey.flat, ImageKey.projection], [2, 3, 4])
ANGLES = np.concatenate([np.zeros(5), [0, 45, 90, 135]])
NEXUS = {"sample": {"name": "bone"}, "beam": {"energy_kev": 20.0}}


def plan_of(det: Any, nexus: dict[str, Any] | None) -> Any:
    motors: dict[str, Any] = {name: SynAxis(name=name) for name in ("rotation", "shutter", "sample")}
    positions: dict[str, Any] = {"start": 0, "stop": 180, "num": 4, "sample_in": 0, "sample_out": 1}
    return tomography([det], **motors, **positions, n_darks=2, n_flats=3, nexus=nexus)


def assert_shows(path: Path, images: np.ndarray, keys: np.ndarray, angles: np.ndarray) -> None:
    with h5py.File(path) as file:
        np.testing.assert_array_equal(dataset(file, IMAGES)[()], images)
        assert dataset(file, f"{DETECTOR}/image_key")[()].tolist() == keys.tolist()
        np.testing.assert_allclose(dataset(file, "entry0000/sample/rotation_angle")[()], angles)


def published(camera: PointCamera) -> np.ndarray:
    return np.stack([image.pixels for image in camera.published])


@pytest.mark.parametrize("how", ["stream", "AD_HDF5", "STDDAQ_PUBLISHED"])
def test_darks_flats_and_projections_have_their_keys_and_angles(
    how: str, engine: RunEngine, make_detector: MakeDetector, caplog: pytest.LogCaptureFixture
):
    det, camera = make_detector(rig={"number_of_writers": 3}, documents=how)
    det.images_per_event.put(2)
    with caplog.at_level(logging.WARNING):
        engine(plan_of(det, NEXUS))
    assert not caplog.records
    (path,) = camera.rig.directory.glob("*_tomo.h5")
    assert path.name == f"{det.file_prefix.get()}_tomo.h5"
    assert_shows(path, published(camera), KEYS.repeat(2), ANGLES.repeat(2))
    with h5py.File(path) as file:
        assert dataset(file, "entry0000/definition")[()] == b"NXtomo"
        assert dataset(file, "entry0000/sample/name").asstr()[()] == "bone"
        assert dataset(file, "entry0000/instrument/beam/incident_energy")[()] == pytest.approx(20)


def test_an_ophyd_async_detector_has_one_too(engine: RunEngine, make_async_detector: MakeAsyncDetector):
    det, camera = make_async_detector(rig={"number_of_writers": 2})
    engine(plan_of(det, NEXUS))
    (path,) = camera.rig.directory.glob("*_tomo.h5")
    assert_shows(path, published(camera), KEYS, ANGLES)


def test_images_of_a_point_that_was_taken_again_are_invalid(
    engine: RunEngine, documents: Documents, make_detector: MakeDetector
):
    det, camera = make_detector()
    plan = pausing(plan_of(det, NEXUS))
    with pytest.raises(RunEngineInterrupted):
        engine(plan)
    while engine.state == "paused":
        try:
            engine.resume()
        except RunEngineInterrupted:
            continue
    assert documents["stop"][0]["exit_status"] == "success"
    # A point that was published before the pause is in the documents twice.
    n_invalid, n_darks = sum(det.orphans.values()), len(stream_images(documents, stream="darks"))
    assert n_invalid
    assert len(camera.published) == n_invalid + n_darks + 7
    (path,) = camera.rig.directory.glob("*_tomo.h5")
    keys = np.repeat([ImageKey.invalid, ImageKey.dark], [n_invalid, n_darks])
    angles = np.concatenate([np.zeros(len(keys)), ANGLES[2:]])
    assert_shows(path, published(camera), np.concatenate([keys, KEYS[2:]]), angles)


def test_a_file_without_the_name_of_the_sample_makes_no_claim_and_the_log_says_how_to_complete_it(
    engine: RunEngine, make_detector: MakeDetector, caplog: pytest.LogCaptureFixture
):
    det, camera = make_detector()
    with caplog.at_level(logging.WARNING):
        engine(plan_of(det, None))
    (path,) = camera.rig.directory.glob("*_tomo.h5")
    with h5py.File(path) as file:
        assert "entry0000/definition" not in file
    (record,) = caplog.records
    assert "got none for sample.name: it has no definition" in record.getMessage()
    command = record.getMessage().split("`")[1]
    _, *arguments = shlex.split(command.replace("=VALUE", "=bone"))
    made = camera.rig.deployment.run(camera.rig.deployment.stddaq, *arguments)
    assert made.wait() == 0, made.stderr
    assert_shows(path, published(camera), KEYS, ANGLES)
    with h5py.File(path) as file:
        assert dataset(file, "entry0000/definition")[()] == b"NXtomo"


def test_a_plan_does_not_fail_when_its_file_cannot_be_made(
    engine: RunEngine, documents: Documents, make_detector: MakeDetector, caplog: pytest.LogCaptureFixture
):
    det, camera = make_detector()
    camera.skip_calls = {9}

    def occupy() -> None:
        (camera.rig.directory / f"{det.file_prefix.get()}_tomo.h5").write_text("other")
        camera.skip_calls.clear()
        camera.fire(1)

    camera.on_skip = occupy
    with caplog.at_level(logging.WARNING):
        engine(plan_of(det, NEXUS))
    assert documents["stop"][0]["exit_status"] == "success"
    (record,) = caplog.records
    assert "no NXtomo file was made" in record.getMessage()
    assert "--keys dark:2,flat:3,projection:4" in record.getMessage()


def test_documents_in_a_file_make_the_same_file_where_the_run_is_now(
    engine: RunEngine, make_detector: MakeDetector, tmp_path: Path
):
    det, camera = make_detector(rig={"number_of_writers": 2})
    engine.subscribe(JSONLinesWriter(str(tmp_path), "scans.jsonl"))
    other: Any = SynAxis(name="other")
    engine(count([other]))
    engine(plan_of(det, NEXUS))
    moved = tmp_path / "moved"
    shutil.copytree(camera.rig.directory, moved, ignore=shutil.ignore_patterns("*_tomo.h5"))
    run = next(moved.glob("*Master.h5"))
    options = ["--documents", str(tmp_path / "scans.jsonl"), "--set", "sample.name=bone"]
    assert main(["nexus", str(run), "--definition", "NXtomo", *options]) == 0
    (path,) = moved.glob("*_tomo.h5")
    assert_shows(path, published(camera), KEYS, ANGLES)
    with h5py.File(path) as file:
        assert dataset(file, "entry0000/definition")[()] == b"NXtomo"


@pytest.mark.external
def test_nxtomo_reads_the_file_of_a_plan(engine: RunEngine, make_detector: MakeDetector, tmp_path: Path):
    det, camera = make_detector(rig={"number_of_writers": 3})
    engine(plan_of(det, NEXUS))
    (path,) = camera.rig.directory.glob("*_tomo.h5")
    found, images = read_by_nxtomo(path, tmp_path)
    assert found["keys"] == KEYS.tolist()
    assert found["angles"] == pytest.approx(ANGLES)
    assert found["energy"] == pytest.approx(20)
    np.testing.assert_array_equal(images, published(camera))
