"""`stddaq info`, `aggregate` and `repair` on files of real runs."""

from __future__ import annotations

import re
from pathlib import Path

import h5py
import numpy as np
import pytest
from support.processes.deployment import Deployment, Service
from support.processes.real_driver import RealDriver

from stddaq.client import DriverClient, RunFailedError


@pytest.fixture
def real_driver(deployment: Deployment) -> RealDriver:
    """Return a running driver with two writers and a simulator."""
    driver = RealDriver.start(deployment)
    driver.publish_continuously()
    return driver


def record(driver: RealDriver, directory: Path, n_images: int) -> None:
    with DriverClient(driver.url) as client:
        client.start(directory, n_image=n_images)
        client.wait_until_saved(timeout=20)


def stddaq(driver: RealDriver, *args: object) -> Service:
    return driver.deployment.run(driver.deployment.stddaq, *args)


def test_info_describes_each_file(real_driver: RealDriver, directory: Path):
    record(real_driver, directory, 11)
    info = stddaq(real_driver, "info", directory / "file0.h5", directory / "fileMaster.h5")
    assert info.wait() == 0
    text = "\n".join(info.stdout)
    assert re.search(r"kind: +raw file", text)
    assert re.search(r"kind: +master file", text)
    assert re.search(r"images: +11\b", text)
    assert "32 x 48 uint16" in text
    assert re.search(r"run: +[0-9a-f]{32}, file_saved\n", text)
    assert re.search(r"stream: +image, over 2 writers by image_id\n", text)
    assert re.search(r"asked for: +11 images from id 0 on\n", text)
    assert re.search(r"dropped: +0$", text)


def test_info_continues_after_a_file_that_cannot_be_read(real_driver: RealDriver, directory: Path):
    record(real_driver, directory, 1)
    (directory / "bad.h5").write_text("no HDF5")
    info = stddaq(real_driver, "info", directory / "bad.h5", directory / "file1.h5")
    assert info.wait() == 2
    assert len(info.stderr) == 1
    assert "bad.h5" in info.stderr[0]
    assert re.search(r"kind: +raw file", "\n".join(info.stdout))


def test_aggregate_makes_the_master_file_again(real_driver: RealDriver, directory: Path):
    record(real_driver, directory, 11)
    with h5py.File(directory / "fileMaster.h5") as file:
        made_by_the_driver = np.asarray(file["/entry/data/data"])
    refused = stddaq(real_driver, "aggregate", directory)
    assert refused.wait() == 2
    assert "expected a new file, got an existing one" in refused.stderr[0]
    (directory / "fileMaster.h5").unlink()
    aggregate = stddaq(real_driver, "aggregate", directory)
    assert aggregate.wait() == 0
    assert "11 images of 32x48 uint16 from 2 raw files, 0 gaps" in aggregate.stdout[0]
    with h5py.File(directory / "fileMaster.h5") as file:
        np.testing.assert_array_equal(np.asarray(file["/entry/data/data"]), made_by_the_driver)


def test_aggregate_names_a_raw_file_that_is_missing(real_driver: RealDriver, directory: Path):
    record(real_driver, directory, 11)
    (directory / "file0.h5").unlink()
    aggregate = stddaq(real_driver, "aggregate", directory, "--overwrite")
    assert aggregate.wait() == 2
    assert "file0.h5" in aggregate.stderr[0]


def test_repair_closes_the_file_of_a_killed_writer(real_driver: RealDriver, directory: Path):
    with DriverClient(real_driver.url) as client:
        client.start(directory)
        client.wait_for(lambda status: status.n_written.get(0, 0) > 10, timeout=20)
        real_driver.writers[0].kill()
        with pytest.raises(RunFailedError, match="writer 0"):
            client.wait_until_saved(timeout=10)
    repair = stddaq(real_driver, "repair", directory / "file0.h5")
    assert repair.wait() == 0
    name = f"/{real_driver.deployment.detector_name}/data"
    with h5py.File(directory / "file0.h5") as file:
        data = file[name]
        assert isinstance(data, h5py.Dataset)
        assert len(data) > 10
        assert f"{len(data)} images" in repair.stdout[0]
    checked = re.search(
        r"not open for writing in (\d+) of (\d+) processes .* cannot be seen", repair.stdout[1]
    )
    assert checked
    assert 1 < int(checked[1]) <= int(checked[2])
    again = stddaq(real_driver, "repair", directory / "file0.h5")
    assert again.wait() == 0
    assert len(again.stdout) == 1


def test_a_prefix_with_a_directory_is_found(real_driver: RealDriver, directory: Path):
    record(real_driver, directory, 11)
    for start, prefix in (
        (directory.parent, f"{directory}/file"),
        (directory.parent, f"{directory.name}/file"),
    ):
        (directory / "fileMaster.h5").unlink()
        aggregate = stddaq(real_driver, "aggregate", start, "--prefix", prefix)
        assert aggregate.wait() == 0, aggregate.stderr
        assert "11 images of 32x48 uint16 from 2 raw files, 0 gaps" in aggregate.stdout[0]
        assert (directory / "fileMaster.h5").exists()
