"""Runs that replace the files of another run."""

from __future__ import annotations

from pathlib import Path

import h5py
import pytest
from support.data.raw_files import RunSpec, stream, write_run
from support.processes.recording import MakeRig, Rig, assert_saved, images_of
from support.tools.fault_table import Seen

from stddaq.client import CommandRefusedError, RunFailedError


@pytest.mark.fault(
    fault="run that replaces raw files with a master file, and fails",
    state="waiting_for_first_image",
    promise="no file shows images of one run as those of the other",
)
def test_master_file_is_removed_before_its_raw_files_are_replaced(make_rig: MakeRig, seen: Seen):
    rig = make_rig(driver=["-m"])
    rig.deployment.start("std_det_meta_writer_gf")
    first, second = images_of(range(20)), images_of(range(20), salt=1)
    assert_saved(rig.record(first), first)
    rig.path("filePublished2.h5").write_text("shows file0.h5")
    kept = rig.path("file3x.h5"), rig.path("otherMaster.h5"), rig.path("file007.h5")
    for path in kept:
        path.write_text("precious")
    rig.begin(overwrite=True)
    assert not rig.path("fileMaster.h5").exists()
    assert not rig.path("filePublished2.h5").exists()
    with h5py.File(rig.path("fileMeta.h5"), swmr=True) as file:
        assert len(file[f"{rig.deployment.detector_name}/metadata"]) == 0  # pyright: ignore
    rig.writers[0].kill()
    with pytest.raises(RunFailedError):
        rig.client.wait_until_saved(60)
    assert not rig.path("fileMaster.h5").exists()
    seen("the old master file is removed first")
    rig.restart_writer(0)
    assert_saved(rig.record(second, overwrite=True), second)
    assert [path.read_text() for path in kept] == ["precious"] * 3
    seen("next run perfect")


@pytest.mark.fault(
    fault="prefix w1 (raw file w10.h5) beside a run w of 12 writers, to be overwritten",
    state="idle",
    promise="start is refused with the reason; nothing is changed",
)
def test_raw_files_of_a_run_of_another_prefix_are_not_overwritten(rig: Rig, seen: Seen):
    spec = RunSpec(n_writers=12, prefix="w")
    write_run(rig.directory, stream(range(24)), spec)
    before = contents(rig.directory)
    with pytest.raises(CommandRefusedError) as refused:
        rig.begin(file_prefix="w1", overwrite=True)
    assert refused.value.reason == (
        f"path: expected no raw file of another run than 'w1', got {rig.path('w10.h5')} of the run 'w'; "
        "choose another file_prefix"
    )
    assert contents(rig.directory) == before
    seen("refused: w10.h5 of the run 'w'")
    for path in spec.raw_paths(rig.directory)[2:]:
        path.unlink()
    images = images_of(range(10))
    assert_saved(rig.record(images, file_prefix="w1"), images)
    assert_saved(rig.record(images, file_prefix="w1", overwrite=True), images)


def test_a_driver_with_overwrite_replaces_the_files_of_every_run(make_rig: MakeRig):
    rig = make_rig(driver=["--overwrite"])
    for salt in range(3):
        images = images_of(range(20 - salt), salt=salt)
        assert_saved(rig.record(images), images)


def test_a_metadata_file_of_another_run_is_not_mixed_with_a_new_run(rig: Rig):
    rig.path("fileMeta.h5").write_text("precious")
    with pytest.raises(CommandRefusedError, match=r"got \S+fileMeta\.h5"):
        rig.begin()
    assert rig.path("fileMeta.h5").read_text() == "precious"


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}
