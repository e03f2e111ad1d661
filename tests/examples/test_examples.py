"""The examples and the example configurations run unchanged."""

from __future__ import annotations

import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from support.peers.redis_server import redis_environment
from support.processes.deployment import Deployment, free_port
from support.processes.recording import Image, MakeRig

from stddaq.config import DetectorConfig
from stddaq.sources.simulated.scenes import Scene

ROOT = Path(__file__).parents[2]
CONFIGURATIONS = sorted((ROOT / "services/config").glob("*.json"))


@pytest.fixture
def recorded(deployment: Deployment, tmp_path: Path) -> Path:
    """Record a run with the recording example. Return the directory of its files."""
    directory = tmp_path / "files"
    directory.mkdir()
    port = free_port()
    deployment.start_up("--port", port, "-m", "--source", "simulate", "--trigger", "--rate", "200")
    example = deployment.run(
        *(sys.executable, ROOT / "examples/record_with_client.py", deployment.config_path, directory),
        *("--url", f"ws://127.0.0.1:{port}", "--n-images", 20),
    )
    assert example.wait() == 0, example.output
    assert example.stdout[-4:][0] == "20 images, ids 0 to 19"
    return directory


def test_recording_example_records_the_simulated_images(deployment: Deployment, recorded: Path):
    scene = Scene.of(DetectorConfig.parse(deployment.config), "rings")
    with h5py.File(recorded / "burstMaster.h5") as file:
        images = file["/entry/data/data"]
        assert isinstance(images, h5py.Dataset)
        assert images.shape == (20, 32, 48)
        for image_id in range(20):
            np.testing.assert_array_equal(images[image_id], scene.image(image_id))


@pytest.mark.slow
def test_averaging_example_averages_all_images(deployment: Deployment, recorded: Path, tmp_path: Path):
    scene = Scene.of(DetectorConfig.parse(deployment.config), "rings")
    expected = np.mean([scene.image(image_id) for image_id in range(20)], axis=0)
    for run in ("burstMaster.h5", "burst1.h5"):
        output = tmp_path / "average.npy"
        example = deployment.run(sys.executable, ROOT / "examples/average_images.py", recorded / run, output)
        assert example.wait() == 0, example.output
        assert example.stdout == [f"{output}: average of 20 of 20 images"]
        np.testing.assert_allclose(np.load(output), expected)


@pytest.fixture
def calibration(tmp_path: Path) -> tuple[Path, Path]:
    """Return .npy files of a dark and a flat image with one dead pixel."""
    random = np.random.default_rng(2)
    dark = random.uniform(5, 9, (32, 48))
    flat = dark + random.uniform(80, 120, (32, 48))
    flat[3, 4] = dark[3, 4]
    np.save(tmp_path / "dark.npy", dark)
    np.save(tmp_path / "flat.npy", flat)
    return tmp_path / "dark.npy", tmp_path / "flat.npy"


@pytest.mark.parametrize("detector_type", ["gigafrost", "jungfrau-converted"])
def test_flat_field_example_makes_a_stream_that_writers_record(
    make_rig: MakeRig, calibration: tuple[Path, Path], detector_type: str
):
    bit_depth = 16 if detector_type == "gigafrost" else 32
    rig = make_rig(
        driver=["-s", "corrected"], writers=False, detector_type=detector_type, bit_depth=bit_depth
    )
    for i in range(2):
        rig.deployment.start("std_det_writer", i, "-s", "corrected")
    dark, flat = map(np.load, calibration)
    rig.deployment.run(
        *(sys.executable, ROOT / "examples/flat_field.py", rig.deployment.config_path, "--threads", 2),
        *("--dark", calibration[0], "--flat", calibration[1]),
        ready="ready",
    )
    assert rig.source.wait_for_subscribers(1, 20)
    rig.client.start(rig.directory, n_image=20)
    rig.client.wait_until_ready(30)
    illumination = np.linspace(0, 90_000, 20)
    images = [dark + (flat - dark) * i for i in illumination / 100]
    rig.publish([Image(i, image.clip(0, 65535).astype(rig.config.dtype)) for i, image in enumerate(images)])
    account = rig.end()
    assert (account["source"], account["n_good"]) == ("corrected", 20)
    mean = (flat - dark)[flat > dark].mean()
    with h5py.File(account["files"]["master"]) as file:
        corrected = file["/entry/data/data"]
        assert isinstance(corrected, h5py.Dataset)
        for i, light in enumerate(illumination / 100):
            image = corrected[i].astype(float)
            assert image[3, 4] == 0
            is_alive = (flat > dark) & (images[i] < 65535)
            # Rounding costs a pixel up to 1 part in about 80. Pixels that were clipped are not checked.
            expected = min(light * mean, 65535) if detector_type == "gigafrost" else light * mean
            np.testing.assert_allclose(image[is_alive], expected, rtol=1e-3, atol=2.5)


def test_flat_field_example_refuses_images_of_another_shape(
    deployment: Deployment, calibration: tuple[Path, Path]
):
    deployment.write_config(image_pixel_height=64)
    dark, flat = calibration
    example = deployment.run(
        *(sys.executable, ROOT / "examples/flat_field.py", deployment.config_path),
        *("--dark", dark, "--flat", flat),
    )
    assert example.wait() == 2
    assert example.stderr == [f"flat_field: error: {dark}: expected shape (64, 48), got (32, 48)"]


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.name)
def test_example_configuration_is_valid(path: Path):
    config = DetectorConfig.load(path)
    assert config.number_of_writers >= 1
    assert config.others == {}


def test_there_is_a_configuration_for_each_kind_of_detector():
    kinds = {DetectorConfig.load(path).detector_type for path in CONFIGURATIONS}
    assert {"gigafrost", "eiger", "pco", "jungfrau-raw"} <= kinds


@pytest.mark.external
def test_image_buffer_example_replays_what_it_has_stored(deployment: Deployment):
    deployment.env.update(redis_environment())
    example = deployment.run(sys.executable, ROOT / "examples/store_and_replay.py", "-n", 50)
    assert example.wait(timeout=100) == 0, example.output
    assert example.stdout[-1] == "50 images stored and replayed, every pixel compared, 0 differ"
    assert example.stderr == []
