"""Storage that pauses for longer than the driver waits for a writer."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.processes.recording import MakeRig, assert_saved, images_of
from support.processes.storage import Storage

# The next run must be in time on a busy machine, too.
TIMEOUT_S = 3
# Longer than the driver waits for the last image, and shorter than for this and the end of the file.
PAUSE_S = 4.0


@pytest.mark.fault(
    fault="the file system of a writer pauses for longer than --writer-timeout",
    state="recording",
    promise="if all images are written, although late, the run is saved with its master file and a warning",
)
def test_late_but_complete_run_is_saved_and_says_so(make_rig: MakeRig, tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    rig = make_rig(driver=["--writer-timeout", TIMEOUT_S], writers=False, number_of_writers=1)
    flush = "stddaq.files.raw_file:RawFile.flush"
    writer = storage.start(rig.deployment, flush, "std_det_writer", 0)
    images = images_of(range(50))
    rig.begin(n_image=len(images))
    storage.stop_responding()
    rig.publish(images)
    rig.client.wait_for(lambda status: status.n_received == len(images), 60)
    storage.respond_slowly(1, PAUSE_S)
    account = rig.end()
    assert_saved(account, images)
    assert f"writer 0 did not answer within {TIMEOUT_S} s" in account["late"]
    assert Path(account["files"]["master"]).exists()
    # The next run is in time.
    assert "late" not in rig.record(images_of(range(60, 80)), file_prefix="next")
    assert writer.returncode is None
