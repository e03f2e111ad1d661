"""Storage that pauses for longer than the driver waits for a writer."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from support.processes.recording import MakeRig, assert_saved, images_of

# A writer whose file system hangs for 1.5 s if the file `pause` exists.
PAUSING_WRITER = """
import sys, time
from pathlib import Path
from stddaq.files.raw_file import RawFile
from stddaq.writing.writer.service import main

def paused(function):
    def wait(*args, **options):
        pause = Path(sys.argv[-1])
        if pause.exists():
            pause.unlink()
            time.sleep(1.5)
        return function(*args, **options)
    return wait

RawFile.flush, RawFile.close = paused(RawFile.flush), paused(RawFile.close)
sys.exit(main(sys.argv[1:-1]))
"""


@pytest.mark.fault(
    fault="the file system of a writer pauses for longer than --writer-timeout",
    state="recording",
    promise="if all images are written, although late, the run is saved with its master file and a warning",
)
def test_late_but_complete_run_is_saved_and_says_so(make_rig: MakeRig, tmp_path: Path) -> None:
    pause = tmp_path / "pause"
    rig = make_rig(driver=["--writer-timeout", 1], writers=False, number_of_writers=1)
    writer = rig.deployment.run(
        *(sys.executable, "-c", PAUSING_WRITER, rig.deployment.config_path, 0, pause), ready="ready"
    )
    images = images_of(range(50))
    rig.begin(n_image=len(images))
    pause.touch()
    rig.publish(images)
    account = rig.end()
    assert_saved(account, images)
    assert "writer 0 did not answer within 1 s" in account["late"]
    assert Path(account["files"]["master"]).exists()
    assert not pause.exists()
    # The next run is in time.
    assert "late" not in rig.record(images_of(range(60, 80)), file_prefix="next")
    assert writer.returncode is None
