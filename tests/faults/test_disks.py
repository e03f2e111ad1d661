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
from support.assertions.faults import wait_for_error
from support.processes.deployment import console_script
from support.processes.recording import MakeRig, Rig, assert_saved, images_of
from support.tools.fault_table import Seen

SHAPE = (128, 128)
DISK = {"image_pixel_height": SHAPE[0], "image_pixel_width": SHAPE[1]}
PROMISE = "error with the reason; images written before are readable; driver and writers remain usable"


def start_limited_writer(rig: Rig, i: int, file_bytes: int) -> None:
    """Start a writer whose files cannot grow beyond `file_bytes`, as on a full disk."""
    rig.deployment.run(
        "/bin/bash",
        "-c",
        f'trap "" XFSZ; ulimit -f {file_bytes // 1024}; exec "$0" "$@"',
        console_script("std_det_writer"),
        rig.deployment.config_path,
        i,
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
