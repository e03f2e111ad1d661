"""Disks that fill up during a run. Refusals at the start are tested in writing/test_commands.py."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.assertions.accounts import check_run
from support.assertions.faults import SMALL, wait_for_error
from support.processes.deployment import SHM_DIRECTORY, Service, console_script, wait_until
from support.processes.recording import MakeRig, Rig, assert_saved, images_of
from support.tools.fault_table import Seen

from stddaq.client import DriverStatus

SHAPE = (128, 128)
DISK = {"image_pixel_height": SHAPE[0], "image_pixel_width": SHAPE[1]}
# `make test` repeats what was tested 50 times.
ROUNDS = 2
RESTART = "HDF5 has failed in this process; it restarts"
SUFFIX = "h5bitshuffle-lz4"
MANY_IMAGES, BATCH = 6000, 100
PROMISE = "error with the reason; images written before are readable; driver and writers remain usable"


def start_limited_writer(rig: Rig, i: int, file_bytes: int) -> Service:
    """Start a writer whose files cannot grow beyond `file_bytes`, as on a full disk."""
    return start_limited(rig, "std_det_writer", i, file_bytes=file_bytes)


def start_limited(rig: Rig, script: str, *arguments: object, file_bytes: int) -> Service:
    return rig.deployment.run(
        "/bin/bash",
        "-c",
        f'trap "" XFSZ; ulimit -f {file_bytes // 1024}; exec "$0" "$@"',
        console_script(script),
        rig.deployment.config_path,
        *arguments,
        ready="ready",
    )


@pytest.mark.fault(fault="disk full (limit of the file size)", state="recording", promise=PROMISE)
def test_a_disk_that_fills_up_is_an_error_with_the_reason_and_earlier_images_are_readable(
    make_rig: MakeRig, seen: Seen
):
    rig = make_rig(writers=False, **DISK)
    # The ring buffer is a file as well: make it before a writer that may not make files of its size.
    assert rig.source.n_published == 0
    rig.deployment.start("std_det_writer", 0)
    start_limited_writer(rig, 1, 2 * 2**20)
    images = images_of(range(200), shape=SHAPE)
    rig.begin()
    rig.publish(images, pause_s=0.002)
    account, _ = wait_for_error(rig)
    assert "file1.h5" in account["reason"]
    assert "File too large" in account["reason"]
    checked = check_run(account, images)
    assert account["n_failed"]
    assert all(image_id % 2 == 1 for image_id in account["failed_ids"])
    # No process was killed, so the account is exact.
    assert checked.n_readable == account["n_good"] > 80
    seen(f"error: file1.h5: File too large; {checked}")
    images = images_of(range(1000, 1020), shape=SHAPE)
    assert_saved(rig.record(images, file_prefix="next"), images)
    seen("next run perfect")


@pytest.mark.fault(
    fault="HDF5 cannot write or close a file (limit of the file size)",
    state="recording, run after run",
    promise="error with the reason; the process is replaced before the next run, which is perfect",
)
@pytest.mark.parametrize("victim", ["writers of compressed images", "metadata writer"])
def test_a_process_in_which_hdf5_failed_is_replaced_before_the_next_run(
    make_rig: MakeRig, victim: str, seen: Seen
):
    rig, limited = start_compressed(make_rig) if "compressed" in victim else start_with_metadata(make_rig)
    for number in range(ROUNDS):
        first = 2 * MANY_IMAGES * number
        rig.begin(file_prefix=f"large{number}_")
        publish_until_error(rig, first)
        account, _ = wait_for_error(rig)
        assert "File too large" in account["reason"]
        images = images_of(range(first + MANY_IMAGES, first + MANY_IMAGES + 40), shape=rig.config.image_shape)
        # At once: it waits for the writers that restart.
        rig.begin(file_prefix=f"small{number}_", n_image=40)
        rig.publish(images)
        assert check_run(rig.end(), images).n_good == 40
        assert not any(service.returncode for service in limited)
    restarts = [sum(RESTART in line for line in service.stdout) for service in limited]
    assert max(restarts) == ROUNDS
    seen(f"{ROUNDS} times: error, then a perfect run by the same process")


def publish_until_error(rig: Rig, first: int) -> None:
    """Publish images as fast as they are recorded, because the ring buffer holds few."""
    for n in range(0, MANY_IMAGES, BATCH):
        rig.publish(images_of(range(first + n, first + n + BATCH), shape=rig.config.image_shape))
        rig.client.wait_for(lambda status, n=n + BATCH: has_recorded(status, n) or has_failed(status), 60)
        if has_failed(rig.client.status()):
            return
    pytest.fail(f"recorded {MANY_IMAGES} images in spite of the limit")


def has_recorded(status: DriverStatus, n_images: int) -> bool:
    return (status.count or 0) >= n_images


def has_failed(status: DriverStatus) -> bool:
    return status.status not in ("waiting_for_first_image", "recording")


def start_compressed(make_rig: MakeRig) -> tuple[Rig, list[Service]]:
    rig = make_rig(writers=False, driver=["-s", SUFFIX], **DISK)
    assert rig.source.n_published == 0
    rig.deployment.start("std_data_compress_h5bitshuffle_lz4", "-t", 1)
    wait_until((SHM_DIRECTORY / f"{rig.config.detector_name}-{SUFFIX}").exists, what="the ring buffer")
    limit = 2 * 2**20
    return rig, [start_limited(rig, "std_det_writer", i, "-s", SUFFIX, file_bytes=limit) for i in range(2)]


def start_with_metadata(make_rig: MakeRig) -> tuple[Rig, list[Service]]:
    rig = make_rig(driver=["-m"], **SMALL)
    # One chunk of rows, and not a second one.
    return rig, [start_limited(rig, "std_det_meta_writer_gf", file_bytes=256 * 1024)]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 4 MiB."""
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


@pytest.mark.fault(fault="disk full (file system of 4 MiB)", state="recording", promise=PROMISE)
def test_a_full_file_system_is_an_error_with_the_reason(make_rig: MakeRig, small_disk: Path, seen: Seen):
    rig = make_rig(**DISK)
    directory, rig.directory = rig.directory, small_disk
    images = images_of(range(300), shape=SHAPE)
    rig.begin()
    rig.publish(images, pause_s=0.001)
    account, _ = wait_for_error(rig)
    assert "No space left on device" in account["reason"]
    checked = check_run(account, images)
    assert checked.n_readable == account["n_good"] > 80
    seen(f"error: No space left on device; {checked}")
    rig.directory = directory
    images = images_of(range(1000, 1020), shape=SHAPE)
    assert_saved(rig.record(images, file_prefix="next"), images)
    seen("next run, on another disk, perfect")


def test_limits_of_this_process_are_not_those_of_a_daemon():
    """The tests above rely on it: file sizes are not limited in this process."""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
