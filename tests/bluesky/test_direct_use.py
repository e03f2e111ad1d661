"""The device at a prompt and in a script, without a RunEngine, and its progress during a plan."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
from bluesky import RunEngine
from bluesky.callbacks.best_effort import BestEffortCallback
from bluesky.plans import count
from bluesky.utils import ProgressBarManager
from support.assertions.plans import PointCamera
from support.processes.deployment import wait_until
from support.processes.recording import images_of

from stddaq_ophyd import AcquisitionError, StdDaqDetector

MakeDetector = Callable[..., tuple[StdDaqDetector, PointCamera]]


def test_a_point_can_be_taken_by_hand(make_detector: MakeDetector, capsys: pytest.CaptureFixture[str]):
    det, camera = make_detector()
    det.images_per_event.put(3)
    assert "not staged" in repr(det)
    with pytest.raises(AcquisitionError, match=r"not staged; det\.stage\(\) comes first"):
        det.trigger()
    det.stage()
    with pytest.raises(AcquisitionError, match=r"det\.prepare\(n\) before it, got an unknown number"):
        det.kickoff()
    det.trigger()
    reading = det.read()
    assert (reading["det_n_images"]["value"], reading["det_n_recorded"]["value"]) == (3, 3)
    assert "det_image" not in reading
    assert det.describe()["det_image"] == {
        "source": camera.rig.url,
        "dtype": "array",
        "dtype_numpy": "<u2",
        "shape": [3, 32, 48],
        "dims": ["image", "y", "x"],
        "external": "STREAM:",
    }
    det.summary()
    shown = capsys.readouterr().out
    for text in (
        "staged",
        f"{camera.rig.url}: recording, 3 images",
        str(camera.rig.directory),
        "*det_mean",
    ):
        assert text in shown
    det.unstage().wait(60)
    assert (camera.rig.directory / "det_00001_Master.h5").exists()


def test_staging_and_unstaging_return_at_once_when_the_driver_hangs(make_detector: MakeDetector):
    det, camera = make_detector()
    camera.rig.driver.send(signal.SIGSTOP)
    staged = det.stage()
    assert not staged.done
    unstaged = det.unstage()
    assert not unstaged.done
    camera.rig.driver.send(signal.SIGCONT)
    unstaged.wait(20)
    wait_until(lambda: camera.rig.client.status().status == "idle", what="the driver to be idle")


def test_progress_is_reported_while_images_arrive(make_detector: MakeDetector):
    fired, two_are_seen = threading.Event(), threading.Event()
    det, camera = make_detector(trigger=fired.set)
    det.images_per_event.put(4)
    det.stage()
    seen: list[tuple[int, int]] = []

    def watch(*, current: int, target: int, **_: Any) -> None:
        seen.append((current, target))
        if current == 2:
            two_are_seen.set()

    status = det.trigger()
    status.watch(watch)
    assert fired.wait(60)
    camera.rig.publish(images_of([0, 1]))
    assert two_are_seen.wait(60)
    assert not status.done
    camera.rig.publish(images_of([2, 3]))
    status.wait(60)
    assert seen[-1] == (4, 4)
    det.unstage().wait(60)


def test_tables_show_the_mean_of_each_point(
    engine: RunEngine, make_detector: MakeDetector, capsys: pytest.CaptureFixture[str]
):
    det, _ = make_detector()
    det.images_per_event.put(7)
    engine.waiting_hook = ProgressBarManager()  # pyright: ignore[reportAttributeAccessIssue]
    callback = BestEffortCallback()
    callback.disable_plots()
    engine(count([det], 3), callback)
    assert re.search(r"\| +det_mean \|", capsys.readouterr().out)


SCRIPT = """
import sys
from stddaq_ophyd import StdDaqDetector
det = StdDaqDetector(sys.argv[1], name="det", paths=sys.argv[2])
det.stage().wait(60)
"""


@pytest.mark.slow
def test_a_script_that_ends_while_it_is_staged_leaves_the_driver_idle(make_detector: MakeDetector):
    _, camera = make_detector()
    rig = camera.rig
    subprocess.run([sys.executable, "-c", SCRIPT, rig.url, rig.directory], check=True, timeout=60)
    assert rig.client.status().status == "idle"
    assert (rig.directory / "det_00001_Master.h5").exists()
