"""The client with the stand-in for the C++ driver and its writers, and their files."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.peers.cpp_driver import start_cpp_driver
from support.processes.deployment import Deployment
from support.processes.recording import assert_raw_files_hold, images_of

from stddaq.client import DriverClient, RunFailedError
from stddaq.config import DetectorConfig
from stddaq.dataplane.image_publisher import ImagePublisher
from stddaq.files.reading import open_run


@pytest.mark.parametrize("by_arrival", [False, True], ids=["by_id", "by_arrival"])
def test_runs_are_followed_and_read_back(deployment: Deployment, directory: Path, by_arrival: bool):
    _, url = start_cpp_driver(deployment, *(["--by-arrival"] if by_arrival else []))
    images = images_of([*range(3, 90), *range(95, 103)])
    with (
        ImagePublisher(DetectorConfig.parse(deployment.config)) as source,
        DriverClient(url) as driver,
    ):
        assert source.wait_for_subscribers(1, 60)
        for prefix in ("scan", "scan", "other"):
            driver.start(directory, file_prefix=prefix)
            assert driver.wait_until_ready(60).raw.keys() <= {"status", "count"}
            for image in images:
                source.publish(image.image_id, image.pixels)
            driver.wait_for(lambda status: status.count == len(images), 20)
            driver.stop()
            assert driver.wait_until_saved(60).status in ("file_saved", "idle")
            assert_raw_files_hold([directory / f"{prefix}{i}.h5" for i in (0, 1)], images, by_arrival)
            with open_run(directory / f"{prefix}0.h5") as run:
                assert run.image_ids.tolist() == [image.image_id for image in images]


def test_a_directory_that_is_absent_fails_the_run(deployment: Deployment, directory: Path):
    _, url = start_cpp_driver(deployment)
    with DriverClient(url) as driver:
        driver.start(directory / "absent")
        with pytest.raises(RunFailedError, match="not a directory"):
            driver.wait_until_ready(60)
