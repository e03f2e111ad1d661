"""`stddaq record --with URL`: one run of several drivers."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.processes.joined_drivers import (
    JoinedDrivers,
    MakeJoinedDrivers,
    assert_master_shows,
    joined_drivers,
)
from support.processes.machine import assert_within
from support.processes.recording import MakeRig

from stddaq.client.async_driver import SILENCE_TIMEOUT_S


@pytest.fixture
def make_drivers(make_rig: MakeRig) -> Iterator[MakeJoinedDrivers]:
    with joined_drivers(make_rig) as make:
        yield make


@pytest.fixture
def drivers(make_drivers: MakeJoinedDrivers) -> JoinedDrivers:
    return make_drivers()


def test_two_drivers_record_one_run_with_one_account_and_one_master_file(drivers: JoinedDrivers):
    record = drivers.record("-n", 60, "--prefix", "scan")
    record.wait_for_line("waiting_for_first_image")
    drivers.publish(range(60))
    assert record.wait() == 0, record.output
    assert "outcome     saved" in record.stdout
    assert "images      60, all good, ids 0 to 59, none dropped" in record.stdout
    assert f"part 2      60 images, driver {drivers.urls[1]}" in record.stdout
    for name in ("scanPart1_0.h5", "scanPart1_1.h5", "scanPart2_0.h5", "scanPart2_1.h5", "scanMaster.h5"):
        assert re.search(rf"file .*/{name} \(.*B\)", record.output)
    assert_master_shows(drivers, range(60), "scan")
    deployment, directory = drivers.parts[0].deployment, drivers.directory
    options = ("--prefix", "scan")
    checked = deployment.run(deployment.stddaq, "validate", directory, *options, "--pixels")
    assert checked.wait() == 0, checked.output
    assert checked.stdout[0] == f"{directory}/scanMaster.h5: 60 images of several drivers, 2 parts"
    assert checked.stdout[-1] == "no problems in the run of all parts"
    exported = deployment.run(deployment.stddaq, "export", directory, directory / "out.tif", *options)
    assert exported.wait() == 0, exported.output
    assert exported.stdout == [
        f"{directory}/outPart{part}.tif: 60 images, all compared with the run" for part in (1, 2)
    ]


def test_images_that_one_part_lacks_are_listed_and_not_in_the_master_file(drivers: JoinedDrivers):
    record = drivers.record()
    record.wait_for_line("waiting_for_first_image")
    drivers.publish(range(20))
    drivers.publish([20, 21, 23], 1)
    drivers.publish([22], 2)
    drivers.publish(range(24, 40))
    record.wait_for_line("recording: 3[67] of")
    assert record.end(signal.SIGINT) == 0, record.output
    assert "outcome     saved" in record.stdout
    assert re.search("images +36, all good, ids 0 to 39", record.output)
    assert "incomplete  4: image ids 20-23" in record.stdout
    assert "  absent    1: image ids 22" in record.stdout
    assert "  absent    3: image ids 20-21, 23" in record.stdout
    assert_master_shows(drivers, [*range(20), *range(24, 40)])


@pytest.mark.slow
def test_a_part_that_is_behind_is_named_while_the_run_goes_on(drivers: JoinedDrivers):
    record = drivers.record()
    record.wait_for_line("waiting_for_first_image")
    drivers.publish(range(40), 1)
    record.wait_for_line("waiting_for_first_image: 0 of .*, part 2 has 0, others up to 40")
    drivers.publish(range(20), 2)
    record.wait_for_line("recording: 20 of .*, part 2 has 20, others up to 40")
    drivers.publish(range(20, 40), 2)
    record.wait_for_line(r"recording: 40 of \d+ images(?!.*others)")
    assert record.end(signal.SIGINT) == 0, record.output


def test_parts_without_a_common_image_are_not_called_stopped(drivers: JoinedDrivers):
    record = drivers.record("-n", 3)
    record.wait_for_line("waiting_for_first_image")
    drivers.publish(range(3), 1)
    drivers.publish(range(10, 13), 2)
    assert record.wait() == 0, record.output
    assert "images      0, all good, none dropped" in record.stdout
    assert "incomplete  6: image ids 0-2, 10-12" in record.stdout
    assert not any(line.startswith("stopped") for line in record.stdout)


def assert_nothing_remains(drivers: JoinedDrivers) -> None:
    """Check that all drivers are idle, and that no file was made."""
    for part in drivers.parts:
        assert part.client.wait(("idle",), 20)
    assert [path.name for path in drivers.directory.iterdir()] == []


def test_no_driver_starts_when_one_is_busy(drivers: JoinedDrivers, tmp_path: Path):
    second = drivers.parts[1]
    (tmp_path / "other").mkdir()
    second.client.start(tmp_path / "other")
    record = drivers.record("-n", 10)
    assert record.wait() == 1
    assert record.stderr[0].startswith(f"stddaq record: refused: {second.url}: the driver is busy")
    second.client.stop()
    assert_nothing_remains(drivers)


def test_no_driver_starts_when_one_refuses(drivers: JoinedDrivers):
    (drivers.directory / "filePart2_1.h5").touch()
    record = drivers.record("-n", 10)
    assert record.wait() == 1
    assert re.search(rf"refused: {drivers.urls[1]}: .*filePart2_1.h5", record.stderr[0])
    (drivers.directory / "filePart2_1.h5").unlink()
    assert_nothing_remains(drivers)


@pytest.mark.slow
def test_the_drivers_that_did_start_are_stopped_when_one_cannot(make_drivers: MakeJoinedDrivers):
    drivers = make_drivers(writers_of_second=False)
    record = drivers.record("-n", 10)
    assert record.wait(timeout=60) == 1
    assert re.search(
        rf"run failed: {drivers.urls[1]}: .*writer 0.*; stopped again, with files that hold no images: "
        rf"{drivers.urls[0]}$",
        record.stderr[0],
    )
    assert drivers.parts[0].client.status().status == "idle"
    # They can be replaced.
    drivers.parts[1].start_writers()
    again = drivers.record("-n", 5, "--overwrite")
    again.wait_for_line("waiting_for_first_image")
    drivers.publish(range(5))
    assert again.wait() == 0, again.output
    assert_master_shows(drivers, range(5))


def test_an_existing_master_file_is_refused_before_a_driver_starts(drivers: JoinedDrivers):
    (drivers.directory / "fileMaster.h5").touch()
    record = drivers.record("-n", 10)
    assert record.wait() == 1
    assert "fileMaster.h5: expected a new file, got an existing one" in record.stderr[0]
    (drivers.directory / "fileMaster.h5").unlink()
    assert_nothing_remains(drivers)


def test_a_driver_that_is_given_twice_is_refused(drivers: JoinedDrivers):
    deployment, url = drivers.parts[0].deployment, drivers.urls[0]
    command = (deployment.stddaq, "record", drivers.directory, "--url", url, "--with", f"{url}/")
    record = deployment.run(*command)
    assert record.wait() == 2
    assert "expected one or several different ones" in record.stderr[0]


@pytest.mark.slow
def test_the_run_goes_on_without_a_driver_that_is_killed(drivers: JoinedDrivers):
    record = drivers.record("-n", 50)
    record.wait_for_line("waiting_for_first_image")
    drivers.publish(range(20))
    record.wait_for_line("recording: 20 of")
    drivers.parts[1].driver.kill()
    record.wait_for_line("part 2 .*killed")
    drivers.publish(range(20, 50), 1)
    assert record.wait(timeout=60) == 1, record.output
    assert re.search(r"run failed: part 2 \(ws://.*\): .* killed", record.stderr[0])
    assert re.search("images +20, all good, ids 0 to 19", record.output)
    assert "incomplete  30: image ids 20-49" in record.stdout
    assert f"part 1      50 images, driver {drivers.urls[0]}" in record.stdout
    assert f"part 2      20 images, driver {drivers.urls[1]}" in record.stdout
    assert "  lost      from image id 20 on" in record.stdout
    # Its writers have closed their files.
    assert_master_shows(drivers, range(20))


@pytest.mark.slow
def test_a_driver_that_hangs_is_named_and_its_part_is_complete_when_it_goes_on(
    make_drivers: MakeJoinedDrivers,
):
    drivers = make_drivers(n_parts=3)
    record = drivers.record("-n", 40)
    record.wait_for_line("waiting_for_first_image")
    drivers.publish(range(20))
    record.wait_for_line("recording: 20 of")
    n_lines, since = len(record.stdout), time.monotonic()
    drivers.parts[2].driver.send(signal.SIGSTOP)
    try:
        record.wait_for_line("part 3 .*no status from the driver for 5 s", start=n_lines)
    finally:
        drivers.parts[2].driver.send(signal.SIGCONT)
    # A line of progress comes once a second.
    assert_within(time.monotonic() - since, SILENCE_TIMEOUT_S + 3)
    drivers.publish(range(20, 40))
    assert record.wait() == 0, record.output
    assert "images      40, all good, ids 0 to 39, none dropped" in record.stdout
    assert f"part 3      40 images, driver {drivers.urls[2]}" in record.stdout
    assert_master_shows(drivers, range(40))


@pytest.mark.slow
def test_a_run_that_was_stopped_ends_on_a_driver_that_is_found_again(drivers: JoinedDrivers):
    second = drivers.parts[1]
    record = drivers.record()
    record.wait_for_line("waiting_for_first_image")
    drivers.publish(range(10))
    record.wait_for_line("recording: 10 ")
    second.driver.send(signal.SIGSTOP)
    try:
        record.wait_for_line("part 2 .*no status from the driver for 5 s")
        record.send(signal.SIGINT)
        record.wait_for_line("stopping")
        time.sleep(0.5)
    finally:
        second.driver.send(signal.SIGCONT)
    assert record.wait() == 0, record.output
    assert "images      10, all good, ids 0 to 9, none dropped" in record.stdout
    assert_master_shows(drivers, range(10))


@pytest.mark.slow
def test_a_driver_that_was_restarted_is_lost_although_it_answers(drivers: JoinedDrivers):
    first, second = drivers.parts
    record = drivers.record("-n", 30)
    record.wait_for_line("waiting_for_first_image")
    drivers.publish(range(10))
    record.wait_for_line("recording: 10 of")
    second.driver.kill()
    second.deployment.start("std_det_driver", "--port", second.url.rpartition(":")[2], ready="ready")
    record.wait_for_line("part 2 .*restarted")
    drivers.publish(range(10, 30), 1)
    assert record.wait(timeout=60) == 1, record.output
    assert "  lost      from image id 10 on" in record.stdout
    result = first.client.last_result()
    assert result is not None
    assert result["count"] == 30


@pytest.mark.slow
def test_a_killed_writer_ends_its_part_and_no_image_without_it_is_good(drivers: JoinedDrivers):
    second = drivers.parts[1]
    record = drivers.record("-n", 60)
    record.wait_for_line("waiting_for_first_image")
    drivers.publish(range(20))
    record.wait_for_line("recording: 20 of")
    second.writers[1].kill()
    drivers.publish(range(20, 60))
    assert record.wait(timeout=60) == 1, record.output
    assert re.search(r"run failed: part 2 \(ws://.*\): .*writer 1", record.stderr[0])
    account = second.client.last_result()
    assert account is not None
    result = drivers.parts[0].client.last_result()
    assert result is not None
    assert result["n_good"] == 60
    assert account["n_good"] < 60
    good = "all" if account["n_good"] == account["count"] else f"{account['n_good']} of them"
    assert f"images      {account['count']}, {good} good, ids" in record.output
    assert f"lost      from image id {account['last_id'] + 1} on" in record.output
    # The file of the killed writer is not closed.
    assert "the master file over the parts was not created" in record.output
    assert not (drivers.directory / "fileMaster.h5").exists()
