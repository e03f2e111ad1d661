"""Services that die, hang or are ended in the middle of a run: what is said, what is left, what goes on."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from support.processes import Service, console_script, wait_until
from support.runs import (
    GOOD,
    OVERWRITTEN,
    Image,
    MakeRig,
    Publishing,
    Rig,
    assert_raw_file_holds,
    assert_raw_files_hold,
    assert_rows,
    assert_saved,
    image_of,
    images_of,
    read_raw_file,
)
from support.sources import start_source

from stddaq.client import DriverClient, RunFailed


def wait_for_error(rig: Rig, within: float = 2.0) -> dict[str, Any]:
    """The account of the run, which must end as an error within so many seconds."""
    begin = time.monotonic()
    with pytest.raises(RunFailed):
        rig.client.wait_until_saved(10)
    assert time.monotonic() - begin < within
    rig.client.wait(["idle"], 1)
    account = rig.account()
    assert account["outcome"] == "error"
    return account


def assert_account_matches_files(account: Mapping[str, Any], writer: int, n_writers: int = 2) -> None:
    """What was received and is not named as failed is in the file of its writer, good to the last pixel."""
    rows, data = read_raw_file(Path(account["files"]["raw"][writer]), swmr=True)
    received = range(account["first_id"], account["last_id"] + 1)
    failed = set(account["failed_ids"])
    confirmed = [i for i in received if i % n_writers == writer and i not in failed]
    assert rows["image_id"].tolist()[: len(confirmed)] == confirmed
    for row, pixels in zip(rows, data, strict=True):
        image_id = int(row["image_id"])
        if row["status"] == OVERWRITTEN:
            # What a writer that hung found too late in the ring buffer is not part of the account.
            assert image_id in failed
            assert not pixels.any()
        else:
            assert row["status"] == GOOD
            assert np.array_equal(pixels, image_of(image_id).pixels)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_writer_that_dies_or_hangs_is_named_and_everything_else_is_saved(rig: Rig, how: signal.Signals):
    with Publishing(rig) as publishing:
        rig.client.start(rig.directory)
        rig.client.wait_until_ready(5)
        rig.wait_for_count(100)
        rig.writers[1].send(how)
        account = wait_for_error(rig)
        first, last = account["first_id"], account["last_id"]
    assert "writer 1" in account["reason"]
    assert "writer 0" not in account["reason"]
    assert account["count"] == last - first + 1
    assert account["n_good"] == account["count"] - account["n_failed"] >= 100
    assert all(i % 2 == 1 for i in account["failed_ids"])
    received = [image for image in publishing.images if first <= image.image_id <= last]
    assert_raw_file_holds(rig.path("file0.h5"), [image for image in received if image.image_id % 2 == 0])
    assert_account_matches_files(account, writer=1)

    if how == signal.SIGKILL:
        rig.writers[1].wait()
        rig.restart_writer(1)
    else:
        rig.writers[1].send(signal.SIGCONT)
        # It closes what it has, and its late answers change nothing.
        wait_until(lambda: is_closed(rig.path("file1.h5")), 3, "the file of the writer that hung")
        assert_account_matches_files(account, writer=1)
        assert rig.account() == account
    images = images_of(range(10**6, 10**6 + 20))
    assert_saved(rig.record(images, file_prefix="next"), images)


def is_closed(path: Path) -> bool:
    with contextlib.suppress(OSError), h5py.File(path):
        return True
    return False


def test_a_writer_killed_before_the_first_image_is_named(rig: Rig):
    rig.begin()
    rig.writers[0].kill()
    account = wait_for_error(rig)
    assert "writer 0" in account["reason"]
    assert account["count"] == 0
    # An empty file would only be in the way of the next start with this name.
    assert not rig.path("file1.h5").exists()


def test_a_metadata_writer_killed_mid_run_is_named_and_the_raw_files_are_valid(make_rig: MakeRig):
    rig = make_rig(driver=["-m"])
    metadata_writer = rig.deployment.start("std_det_meta_writer_gf")
    images = images_of(range(30))
    rig.begin()
    rig.publish(images)
    rig.wait_for_count(30)
    metadata_writer.kill()
    account = wait_for_error(rig)
    assert "meta" in account["reason"]
    assert_raw_files_hold(account["files"]["raw"], images)
    assert account["n_good"] == 30


def test_all_writers_killed_leaves_a_driver_that_is_usable(rig: Rig):
    rig.begin()
    rig.publish(images_of(range(10)))
    rig.wait_for_count(10)
    for writer in rig.writers:
        writer.kill()
    account = wait_for_error(rig)
    assert "writer 0" in account["reason"] or "writer 1" in account["reason"]
    for i in range(2):
        rig.restart_writer(i)
    images = images_of(range(50, 60))
    assert_saved(rig.record(images, file_prefix="next"), images)


def test_a_writer_that_pauses_for_a_moment_loses_nothing(rig: Rig):
    images = images_of(range(100))
    rig.begin(n_image=100)
    rig.publish(images[:50])
    rig.writers[0].send(signal.SIGSTOP)
    rig.publish(images[50:])
    time.sleep(0.3)
    rig.writers[0].send(signal.SIGCONT)
    assert_saved(rig.end(), images)


def test_writers_close_valid_files_when_the_driver_is_killed_and_serve_the_next_one(rig: Rig):
    images = images_of(range(40))
    rig.begin()
    rig.publish(images)
    rig.wait_for_count(40)
    rig.driver.kill()
    for writer in rig.writers:
        writer.wait_for_line("closed, 20 images", timeout=2.5)
    assert_raw_files_hold([rig.path("file0.h5"), rig.path("file1.h5")], images)
    rig.start_driver()
    images = images_of(range(100, 120))
    wait_until(lambda: rig.source.n_subscribers, what="the new driver's subscription")
    assert_saved(rig.record(images, file_prefix="next"), images)


def test_a_killed_producer_leaves_a_run_that_can_be_stopped(rig: Rig):
    simulator = start_source(rig.deployment, "simulate", "--rate", 500)
    rig.client.start(rig.directory)
    rig.wait_for_count(50)
    simulator.kill()
    rig.client.wait_for(lambda status: status.count == status.n_received, 5)
    assert rig.client.status().status == "recording"
    account = rig.end(stop=True)
    assert account["outcome"] == "file_saved"
    rows = [read_raw_file(Path(path))[0] for path in account["files"]["raw"]]
    assert sum(map(len, rows)) == account["count"] == account["n_good"] >= 50
    # Its successor on the same stream is recorded, too.
    rig.client.start(rig.directory, n_image=20, file_prefix="next")
    rig.client.wait_until_ready(5)
    start_source(rig.deployment, "simulate", "--rate", 500)
    rig.client.wait_until_saved(10)
    assert rig.account()["n_good"] == 20


def end_in_time(service: Service, signal_number: int = signal.SIGTERM) -> None:
    begin = time.monotonic()
    assert service.end(signal_number) == 0, service.output
    assert time.monotonic() - begin < 2.0
    assert service.stderr == []


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_driver_that_is_ended_mid_run_saves_it(make_rig: MakeRig, how: signal.Signals):
    rig = make_rig(driver=["-m"])
    metadata_writer = rig.deployment.start("std_det_meta_writer_gf")
    images = images_of(range(60))
    rig.begin()
    rig.publish(images)
    rig.wait_for_count(60)
    end_in_time(rig.driver, how)
    assert_raw_files_hold([rig.path("file0.h5"), rig.path("file1.h5")], images)
    assert rig.path("fileMaster.h5").exists()
    with h5py.File(rig.path("fileMeta.h5")) as file:
        rows: Any = file[f"{rig.config.detector_name}/metadata"]
        assert len(rows) == 60
    end_in_time(metadata_writer, how)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_writer_that_is_ended_mid_run_closes_its_file_and_is_named(make_rig: MakeRig, how: signal.Signals):
    rig = make_rig(driver=["-m"])
    metadata_writer = rig.deployment.start("std_det_meta_writer_gf")
    images = images_of(range(60))
    rig.begin()
    rig.publish(images)
    rig.wait_for_count(60)
    end_in_time(rig.writers[1], how)
    account = wait_for_error(rig)
    assert "writer 1" in account["reason"]
    assert account["n_good"] == 60
    assert_raw_files_hold(account["files"]["raw"], images)
    end_in_time(metadata_writer, how)


def test_a_simulator_that_is_ended_mid_run_leaves_a_run_that_can_be_stopped(rig: Rig):
    simulator = start_source(rig.deployment, "simulate", "--rate", 500)
    rig.client.start(rig.directory)
    rig.wait_for_count(20)
    end_in_time(simulator)
    assert rig.end(stop=True)["outcome"] == "file_saved"


def start_limited_writer(rig: Rig, i: int, file_bytes: int) -> None:
    """A writer of which no file can grow beyond `file_bytes`: to it the disk is full."""
    rig.deployment.run(
        "/bin/bash",
        "-c",
        f'trap "" XFSZ; ulimit -f {file_bytes // 1024}; exec "$0" "$@"',
        console_script("std_det_writer"),
        rig.deployment.config_path,
        i,
        ready="ready",
    )


def test_a_disk_that_fills_up_is_an_error_with_the_reason_and_files_are_readable_up_to_there(
    make_rig: MakeRig,
):
    rig = make_rig(writers=False, image_pixel_height=128, image_pixel_width=128)
    # The ring buffer is a file as well: it exists before the writer may not make such large ones.
    assert rig.source.n_published == 0
    rig.deployment.start("std_det_writer", 0)
    start_limited_writer(rig, 1, 2 * 2**20)
    images = images_of(range(200), shape=(128, 128))
    rig.begin()
    rig.publish(images, pause_s=0.002)
    account = wait_for_error(rig)
    assert "file1.h5" in account["reason"]
    assert "File too large" in account["reason"]
    received = [image for image in images if image.image_id <= account["last_id"]]
    assert_raw_file_holds(rig.path("file0.h5"), received[::2])
    rows, data = read_any(rig.path("file1.h5"))
    assert len(rows) == account["n_good"] - len(received[::2])
    assert len(rows) > 40
    assert_holds(rig.path("file1.h5"), rows, data, received[1::2][: len(rows)])
    assert account["failed_ids"] == [image.image_id for image in received[1::2][len(rows) :]]
    # The driver and both writers are usable.
    images = images_of(range(1000, 1020), shape=(128, 128))
    assert_saved(rig.record(images, file_prefix="next"), images)


def read_any(path: Path) -> tuple[np.ndarray, np.ndarray]:
    return read_raw_file(path, swmr=not is_closed(path))


def assert_holds(path: Path, rows: np.ndarray, data: np.ndarray, images: list[Image]) -> None:
    assert_rows(path, rows, images)
    for image, found in zip(images, data, strict=True):
        assert np.array_equal(found, image.pixels)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    where = tmp_path / "small"
    where.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(where)]
    if os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("only root can mount; the limit of file sizes is tested above")
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here; the limit of file sizes is tested above")
    try:
        yield where
    finally:
        subprocess.run(["umount", str(where)], check=True)


def test_a_full_file_system_is_an_error_with_the_reason(make_rig: MakeRig, small_disk: Path):
    rig = make_rig(image_pixel_height=128, image_pixel_width=128)
    rig.directory = small_disk
    images = images_of(range(300), shape=(128, 128))
    rig.begin()
    rig.publish(images, pause_s=0.001)
    account = wait_for_error(rig)
    assert "No space left on device" in account["reason"]
    n_found = 0
    for writer, name in enumerate(("file0.h5", "file1.h5")):
        rows, data = read_any(small_disk / name)
        mine = [i for i in images if i.image_id % 2 == writer][: len(rows)]
        assert_holds(small_disk / name, rows, data, mine)
        n_found += len(rows)
    assert n_found == account["n_good"]


def test_limits_of_this_process_are_not_those_of_a_daemon():
    """The tests above rely on it: nobody has limited file sizes here."""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_a_client_is_told_when_the_driver_is_killed_and_can_come_back(rig: Rig):
    rig.driver.kill()
    rig.start_driver()
    with DriverClient(rig.url) as client:
        assert client.latest.status == "idle"
        assert client.last_result() is None
