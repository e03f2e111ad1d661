"""Files that are removed, renamed or replaced while they are written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.assertions.faults import SMALL, wait_for_error
from support.processes.recording import MakeRig, assert_saved, images_of
from support.tools.fault_table import Seen


def remove(directory: Path, name: str) -> None:
    (directory / name).unlink()


def rename(directory: Path, name: str) -> None:
    (directory / name).rename(directory / "renamed")


def replace(directory: Path, name: str) -> None:
    (directory / "other").write_text("other content")
    (directory / "other").rename(directory / name)


def rename_directory(directory: Path, _name: str) -> None:
    directory.rename(directory.with_name("renamed"))


def replace_directory(directory: Path, _name: str) -> None:
    rename_directory(directory, "")
    directory.mkdir()


HARMS = {
    "removed": remove,
    "renamed": rename,
    "replaced": replace,
    "its directory renamed": rename_directory,
    "its directory replaced": replace_directory,
}


@pytest.mark.fault(
    fault="a file of the run: {how}",
    state="recording, no image arrives",
    promise="error within a second that names the path; no image of the file is good; next run perfect",
)
@pytest.mark.parametrize("name", ["file1.h5", "fileMeta.h5"])
@pytest.mark.parametrize("how", HARMS)
def test_a_file_that_is_no_longer_at_its_path_ends_the_run(
    make_rig: MakeRig, tmp_path: Path, how: str, name: str, seen: Seen
):
    rig = make_rig(driver=["-m"], **SMALL)
    rig.deployment.start("std_det_meta_writer_gf")
    home, rig.directory = rig.directory, tmp_path / "run"
    rig.directory.mkdir()
    rig.begin()
    rig.publish(images_of(range(20), shape=rig.config.image_shape))
    rig.wait_for_count(20)
    harm: Callable[[Path, str], None] = HARMS[how]
    harm(rig.directory, name)
    account, seconds = wait_for_error(rig)
    # Of a directory, any of its files may be missed first.
    place = rig.directory if "directory" in how else rig.directory / name
    assert str(place) in account["reason"]
    assert ": expected the file that is being written" in account["reason"]
    if name == "file1.h5" and "directory" not in how:
        assert account["failed_ids"][-10:] == list(range(1, 20, 2))
    if how == "replaced":
        assert (rig.directory / name).read_text() == "other content"
    seen(f"error after {seconds:.1f} s: {account['n_good']} good, {account['n_failed']} failed")
    rig.directory = home
    images = images_of(range(100, 120), shape=rig.config.image_shape)
    assert_saved(rig.record(images), images)
    seen("next run perfect")
