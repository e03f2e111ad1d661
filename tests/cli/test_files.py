"""`stddaq info`, `validate`, `plot-missing`, `export`, `aggregate` and `repair` on files of real runs."""

from __future__ import annotations

import json
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
    driver.publish_continuously(100)
    return driver


def record(driver: RealDriver, directory: Path, n_images: int, prefix: str = "file") -> None:
    with DriverClient(driver.url) as client:
        client.start(directory, n_image=n_images, file_prefix=prefix)
        client.wait_until_saved(timeout=60)


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


def test_info_lists_the_runs_of_a_directory(real_driver: RealDriver, directory: Path):
    for prefix, n_images in (("a", 11), ("b", 7), ("c", 3), ("d", 2), ("e", 1)):
        record(real_driver, directory, n_images, prefix)
    (directory / "bMaster.h5").unlink()
    (directory / "c1.h5").unlink()
    (directory / "d0.h5").write_text("no HDF5")
    (directory / "eMaster.h5").write_text("no HDF5")
    with h5py.File(directory / "other0.h5", "w") as file:
        file["data"] = np.zeros(3)
    info = stddaq(real_driver, "info", directory)
    assert info.wait() == 0
    head, a, b, c, d, e, other = info.stdout
    assert re.split(r"  +", head) == ["run", "images", "good", "bad", "started", "size", "outcome"]
    assert re.fullmatch(r"a +11 +11 +- +\d{4}-\d\d-\d\d \d\d:\d\d:\d\d +[\d.]+ kB +saved", a)
    assert re.fullmatch(r"b +7 +7 +- +\? +[\d.]+ kB +no master file", b)
    assert re.fullmatch(r"c +3 +\? +- .*c1\.h5: is missing", c)
    assert re.match(r"d +2 +\? +- .*d0\.h5", d)
    assert re.match(r"e +\? +\? +- .*eMaster\.h5: is not an HDF5 file", e)
    assert re.fullmatch(r"other +\? +\? .* HDF5 files, not of a run", other)
    runs = stddaq(real_driver, "info", "--json", directory, directory / "a0.h5")
    assert runs.wait() == 0
    found = json.loads("\n".join(runs.stdout))
    assert [one["prefix"] for one in found[:-1]] == ["a", "b", "c", "d", "e", "other"]
    assert found[0] | {"started_at": "", "size": 0} == {
        "prefix": "a",
        "outcome": "file_saved",
        "started_at": "",
        "n_images": 11,
        "n_good": 11,
        "bad": {},
        "size": 0,
    }
    assert found[-1]["kind"] == "raw"
    assert found[-1]["ids"]["step"] == 2


def test_info_of_a_directory_without_runs_says_so(deployment: Deployment, directory: Path):
    (directory / "notes.txt").touch()
    info = deployment.run(deployment.stddaq, "info", directory)
    assert info.wait() == 0
    assert info.stdout == [f"{directory}: no files of runs"]


def test_validate_finds_what_happened_to_a_run(real_driver: RealDriver, directory: Path):
    record(real_driver, directory, 11)
    sound = stddaq(real_driver, "validate", directory, "--pixels")
    assert sound.wait() == 0, sound.stdout
    assert sound.stdout[0].startswith(f"{directory}: 11 images in 2 raw files, ids ")
    assert sound.stdout[-1] == "no problems"
    (directory / "file1.h5").unlink()
    harmed = stddaq(real_driver, "validate", directory / "fileMaster.h5", "--json")
    assert harmed.wait() == 1
    report = json.loads("\n".join(harmed.stdout))
    assert (report["exit_code"], len(report["problems"])) == (1, 1)
    assert report["problems"][0]["text"] == f"{directory}/file1.h5: is missing, no such file"
    refused = stddaq(real_driver, "validate", directory / "other")
    assert refused.wait() == 2
    assert len(refused.stderr) == 1


def test_a_run_is_exported_and_its_missing_images_are_drawn(real_driver: RealDriver, directory: Path):
    record(real_driver, directory, 11)
    for command, out in (
        (["export", directory, directory / "out.tif"], "out.tif: 11 images, all compared with the run"),
        (["plot-missing", directory, "-o", directory / "out.svg"], "out.svg"),
    ):
        done = stddaq(real_driver, *command)
        # The first use of matplotlib on a machine looks at all fonts.
        assert done.wait(60) == 0, done.stderr
        assert done.stdout == [f"{directory}/{out}"]
        refused = stddaq(real_driver, *command)
        assert refused.wait() == 2
        (line,) = refused.stderr
        assert line.startswith(f"stddaq {command[0]}: error: {directory}/{out[:7]}: expected a new file, got")
    assert (directory / "out.svg").read_text().startswith("<?xml")


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


@pytest.mark.slow
def test_repair_closes_the_file_of_a_killed_writer(real_driver: RealDriver, directory: Path):
    with DriverClient(real_driver.url) as client:
        client.start(directory)
        client.wait_for(lambda status: status.n_written.get(0, 0) > 10, timeout=60)
        real_driver.writers[0].kill()
        with pytest.raises(RunFailedError, match="writer 0"):
            client.wait_until_saved(timeout=60)
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
