"""Plans in a queue: bluesky-queueserver runs, pauses and aborts them, and destroys their environment."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.assertions.plans import Documents, stream_images
from support.processes.deployment import Deployment, wait_until
from support.processes.queue_server import QueueServer, read_documents

from stddaq.client import DriverClient

pytestmark = [pytest.mark.external, pytest.mark.timeout(400)]

SCRIPT = """
import json, os
from bluesky import RunEngine
from bluesky.plans import count, scan
from ophyd import Signal
from ophyd.sim import SynAxis
from stddaq_ophyd import SimulatedCamera, StdDaqDetector
from stddaq_ophyd.plans import fly, fly_scan, tomography

RE = RunEngine()
motor, sample, rotation = (SynAxis(name=name) for name in ("motor", "sample", "rotation"))
shutter = Signal(name="shutter", value=0)
camera = SimulatedCamera({detector!r}, name="camera")
camera.rate.put(50)
det = StdDaqDetector({url!r}, name="det", paths={directory!r}, trigger=camera)

def write(name, doc):
    with open({documents!r}, "a") as file:
        file.write(json.dumps([name, doc], default=str) + chr(10))

RE.subscribe(write)
with open({documents!r} + ".pid", "w") as file:
    file.write(str(os.getpid()))
"""


class Queue(QueueServer):
    """A manager whose plans have a detector with the simulator as camera."""

    def __init__(self, deployment: Deployment, directory: Path, work: Path) -> None:
        _, url = deployment.start_driver()
        deployment.start_writers()
        command = (deployment.stddaq, "simulate", deployment.config_path, "--trigger")
        deployment.run(*command, "--wait-for-subscribers", 1, ready="ready")
        self._documents = work / "documents"
        names = {"detector": deployment.detector_name, "url": url, "directory": str(directory)}
        super().__init__(work, SCRIPT.format(documents=str(self._documents), **names))
        self.driver = DriverClient(url)

    @property
    def documents(self) -> list[tuple[str, dict[str, Any]]]:
        return read_documents(self._documents)

    @property
    def worker(self) -> int:
        """The process of the RunEngine."""
        return int(Path(f"{self._documents}.pid").read_text())

    def wait_for_images(self) -> None:
        """Wait until the driver records, and documents of some images were emitted."""
        n = len(self.documents)
        self.driver.wait_for(lambda status: (status.count or 0) > 5, 60, "images")
        wait_until(lambda: len(self.documents) > n, 60, "documents")

    def wait_until_idle(self) -> None:
        self.driver.wait(("idle",), 60)

    def assert_next_plan_is_right(self) -> None:
        """A plan of three points shows three images with consecutive ids."""
        n = len(self.documents)
        self.add("count", ["det"], 3)
        self.run()
        assert self.history()[-1] == ("count", "completed")
        found = Documents()
        for name, doc in self.documents[n:]:
            found(name, doc)
        assert len(stream_images(found)) == 3
        self.wait_until_idle()


@pytest.fixture
def queue(deployment: Deployment, directory: Path, tmp_path: Path) -> Iterator[Queue]:
    with Queue(deployment, directory, tmp_path) as made, made.driver:
        made.open()
        yield made


def test_all_plans_can_be_queued_paused_and_aborted(queue: Queue):
    queue.add("fly", ["det"], 20)
    queue.add("fly_scan", ["det"], "motor", 0, 1, 20)
    options = {"shutter": "shutter", "sample": "sample", "sample_in": 0, "sample_out": 5}
    queue.add("tomography", ["det"], "rotation", 0, 180, 4, n_darks=1, n_flats=1, **options)
    queue.add("scan", ["det"], "motor", 0, 1, 3)
    queue.run()
    expected = ["fly", "fly_scan", "tomography", "scan"]
    assert queue.history() == [(name, "completed") for name in expected], queue.documents[-1]

    # A point is replayed after a pause; a flight can only be aborted or resumed.
    queue.add("fly", ["det"], 1000)
    queue.do("queue_start")
    queue.wait_for_images()
    queue.do("re_pause", option="immediate")
    queue.wait_for(manager_state="paused")
    queue.do("re_abort")
    queue.wait_for(manager_state="idle")
    assert queue.history()[-1] == ("fly", "aborted")
    queue.wait_until_idle()
    queue.do("queue_clear")
    queue.assert_next_plan_is_right()


@pytest.mark.parametrize("is_killed", [False, True])
def test_an_environment_that_ends_in_a_flight_leaves_no_run(queue: Queue, is_killed: bool):
    queue.add("fly", ["det"], 2000)
    queue.do("queue_start")
    queue.wait_for_images()
    if is_killed:
        os.kill(queue.worker, signal.SIGKILL)
    queue.do("environment_destroy")
    queue.wait_for(worker_environment_exists=False, manager_state="idle")
    queue.do("queue_clear")
    queue.open()
    queue.assert_next_plan_is_right()
