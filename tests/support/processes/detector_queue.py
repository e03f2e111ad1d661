"""A queue of plans whose detector has the simulator as camera, and what its plans recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from support.assertions.plans import Documents, stream_images
from support.processes.deployment import Deployment, wait_until
from support.processes.queue_server import QueueServer, read_documents

from stddaq.client import DriverClient
from stddaq.client.simulator import SimulatorClient
from stddaq.config import DetectorConfig
from stddaq.files.nexus import IMAGE_METADATA
from stddaq.sources.simulated.scenes import Scene

SCRIPT = """
import json, os
from bluesky import RunEngine
from bluesky.plan_stubs import mv
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


class DetectorQueue(QueueServer):
    """A manager whose plans have a detector with the simulator as camera."""

    def __init__(self, deployment: Deployment, directory: Path, work: Path) -> None:
        _, url = deployment.start_driver()
        deployment.start_writers()
        command = (deployment.stddaq, "simulate", deployment.config_path, "--trigger")
        deployment.run(*command, "--wait-for-subscribers", 1, ready="ready")
        self._documents = work / "documents"
        self.detector_name = deployment.detector_name
        self._scene = Scene.of(DetectorConfig.parse(deployment.config), "rings")
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

    def start_flight(self, n_images: int) -> None:
        """Start a flight, and wait until documents of some images were emitted."""
        n_runs = len(self.runs)
        self.add("fly", ["det"], n_images)
        self.do("queue_start")
        self.wait_for_run(n_runs)
        wait_until(lambda: self.runs[-1]["stream_datum"], 60, "documents of images")

    def wait_until_idle(self) -> None:
        self.driver.wait(("idle",), 60)

    @property
    def runs(self) -> list[Documents]:
        """Return the documents of each run so far."""
        runs: list[Documents] = []
        for name, doc in self.documents:
            if name == "start":
                runs.append(Documents())
            runs[-1](name, doc)
        return runs

    def wait_for_run(self, number: int) -> None:
        """Wait until run `number`, from 0, has begun."""
        wait_until(lambda: len(self.runs) > number, 60, f"run {number}")

    def images_of(self, run: Documents) -> list[int]:
        """Return the ids of the images of the one stream of `run`.

        Each must have the pixels that the camera made for its id.
        """
        images = stream_images(run)
        uri: str = run["stream_resource"][0]["uri"]
        with h5py.File(uri.removeprefix("file://localhost"), swmr=True) as file:
            rows = file[IMAGE_METADATA]
            assert isinstance(rows, h5py.Dataset)
            ids: list[int] = rows["image_id"].tolist()
        np.testing.assert_array_equal(images, [self._scene.image(i) for i in ids])
        return ids

    def assert_next_plan_is_right(self) -> None:
        """A plan of three points shows the last three images of the camera."""
        self.add("count", ["det"], 3)
        self.run()
        assert self.history()[-1] == ("count", "completed")
        assert self.images_of(self.runs[-1]) == self.last_images(3)
        self.wait_until_idle()

    def last_images(self, n: int) -> list[int]:
        """Return the ids of the last `n` images that the camera published."""
        with SimulatorClient(self.detector_name) as camera:
            next_id = camera.status().next_id
        return list(range(next_id - n, next_id))
