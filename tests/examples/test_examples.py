"""The examples and the example configurations, as they stand."""

from __future__ import annotations

import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from support.processes import Deployment, free_port

from stddaq.acquisition.scenes import Scene
from stddaq.config import DetectorConfig

ROOT = Path(__file__).parents[2]
CONFIGURATIONS = sorted((ROOT / "services/config").glob("*.json"))


@pytest.fixture
def recorded(deployment: Deployment, tmp_path: Path) -> Path:
    """The files of a run of the recording example."""
    directory = tmp_path / "files"
    directory.mkdir()
    port = free_port()
    deployment.run(
        *(deployment.stddaq, "up", deployment.config_path, "--port", port, "-m"),
        *("--source", "simulate", "--trigger", "--rate", "200"),
        ready="all services ready",
    )
    example = deployment.run(
        *(sys.executable, ROOT / "examples/record_with_client.py", deployment.config_path, directory),
        *("--url", f"ws://127.0.0.1:{port}", "--n-images", 20),
    )
    assert example.wait(timeout=30) == 0, example.output
    assert example.stdout[-4:][0] == "20 images, ids 0 to 19"
    return directory


def test_recording_example_records_what_was_simulated(deployment: Deployment, recorded: Path):
    scene = Scene.of(DetectorConfig.parse(deployment.config), "rings")
    with h5py.File(recorded / "burstMaster.h5") as file:
        images = file["/entry/data/data"]
        assert isinstance(images, h5py.Dataset)
        assert images.shape == (20, 32, 48)
        for image_id in range(20):
            np.testing.assert_array_equal(images[image_id], scene.image(image_id))


def test_averaging_example_averages_all_images(deployment: Deployment, recorded: Path, tmp_path: Path):
    scene = Scene.of(DetectorConfig.parse(deployment.config), "rings")
    expected = np.mean([scene.image(image_id) for image_id in range(20)], axis=0)
    for run in ("burstMaster.h5", "burst1.h5"):
        output = tmp_path / "average.npy"
        example = deployment.run(sys.executable, ROOT / "examples/average_images.py", recorded / run, output)
        assert example.wait() == 0, example.output
        assert example.stdout == [f"{output}: average of 20 of 20 images"]
        np.testing.assert_allclose(np.load(output), expected)


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.name)
def test_example_configuration_is_valid(path: Path):
    config = DetectorConfig.load(path)
    assert config.number_of_writers >= 1
    assert config.model_extra == {}


def test_there_is_a_configuration_for_each_kind_of_detector():
    kinds = {DetectorConfig.load(path).detector_type for path in CONFIGURATIONS}
    assert {"gigafrost", "eiger", "pco", "jungfrau-raw"} <= kinds
