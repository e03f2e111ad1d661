"""The plan after an interrupted one has its own images, and ends what a killed process left."""

from __future__ import annotations

import asyncio
import gc
import math
import os
import re
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bluesky import RunEngine, RunEngineInterrupted
from bluesky import plan_stubs as bps
from bluesky.plans import count
from bluesky.utils import FailedStatus
from ophyd_async.core import init_devices
from support.assertions.plans import Documents, PointCamera, stream_images
from support.processes.deployment import Deployment, Service, console_script, wait_until
from support.processes.recording import MakeRig

from stddaq.client import DriverClient
from stddaq.client.simulator import SimulatorClient
from stddaq.config import DetectorConfig
from stddaq.sources.simulated.scenes import Scene
from stddaq_ophyd import SettingError, SimulatedCamera, StdDaqDetector
from stddaq_ophyd.async_detector import AsyncStdDaqDetector
from stddaq_ophyd.plans import fly

# bluesky's protocols do not know the types of ophyd's Status.
MakeDetector = Callable[..., tuple[Any, PointCamera]]


class Simulated:
    """A detector whose camera is the simulator, with the services that it needs."""

    def __init__(self, deployment: Deployment, directory: Path) -> None:
        _, self.url = deployment.start_driver()
        deployment.start_writers()
        command = (deployment.stddaq, "simulate", deployment.config_path, "--trigger")
        deployment.run(*command, "--wait-for-subscribers", 1, ready="ready")
        self.camera = SimulatedCamera(deployment.detector_name, name="camera")
        self.det = StdDaqDetector(self.url, name="det", paths=directory, trigger=self.camera)
        self._scene = Scene.of(DetectorConfig.parse(deployment.config), "rings")

    def assert_shown(self, found: Documents, first_id: int, n: int) -> None:
        """Check that the documents reference `n` images from `first_id` on."""
        expected = [self._scene.image(i) for i in range(first_id, first_id + n)]
        np.testing.assert_array_equal(stream_images(found), expected)


@pytest.fixture
def simulated(deployment: Deployment, directory: Path) -> Any:
    made = Simulated(deployment, directory)
    yield made
    made.det.unstage().wait(60)
    made.camera.destroy()


def interrupt_at(engine: RunEngine, what: str) -> None:
    """Pause `engine` after its first document of kind `what`."""
    token = engine.subscribe(lambda name, doc: threading.Thread(target=engine.request_pause).start(), what)
    engine.subscribe(lambda name, doc: engine.unsubscribe(token), "stop")


@pytest.mark.parametrize("how", ["abort", "stop", "halt"])
def test_a_plan_after_an_interrupted_flight_has_its_own_images(engine: RunEngine, simulated: Any, how: str):
    det, camera = simulated.det, simulated.camera
    camera.rate.put(20)
    interrupt_at(engine, "stream_datum")
    with pytest.raises(RunEngineInterrupted):
        engine(fly([det], 400, period=0.1))
    getattr(engine, how)()
    found = Documents()
    engine(count([det], 3), found)
    state = camera.status()
    assert (state.n_pending, state.next_id) == (0, state.n_published)
    assert state.n_published < 200
    simulated.assert_shown(found, state.next_id - 3, 3)
    assert det.orphans == {}


def test_a_plan_after_a_point_that_timed_out_has_its_own_images(engine: RunEngine, simulated: Any):
    det, camera = simulated.det, simulated.camera
    det.images_per_event.put(10)
    det.margin.put(0.3)
    camera.rate.put(10)
    with pytest.raises(FailedStatus):
        engine(count([det]))
    assert sum(det.orphans.values()) == camera.status().n_published
    assert camera.status().n_pending == 0
    det.images_per_event.put(1)
    det.margin.put(30)
    found = Documents()
    engine(count([det], 2), found)
    simulated.assert_shown(found, camera.status().next_id - 2, 2)


def test_images_of_a_process_that_was_killed_are_not_those_of_the_next_plan(
    engine: RunEngine, simulated: Any
):
    # The trigger of another program, which did not stop its camera.
    simulated.camera.rate.put(50)
    simulated.camera.fire(1000)
    simulated.det.margin.put(10)
    found = Documents()
    engine(count([simulated.det], 3), found)
    state = simulated.camera.status()
    assert state.n_published < 1000
    simulated.assert_shown(found, state.next_id - 3, 3)


def test_settings_of_the_simulator_are_shown_as_it_has_them(
    engine: RunEngine, documents: Documents, simulated: Any
):
    with SimulatorClient(simulated.camera.prefix) as other:
        other.configure(rate=500, exposure_time=0.5)
        engine(count([simulated.det, simulated.camera]))
        # What was not set here is left alone, and shown.
        configured = documents["descriptor"][0]["configuration"]["camera"]["data"]
        assert configured == {"camera_rate": 500, "camera_exposure_time": 0.5}
        simulated.camera.rate.put(250)
        other.configure(rate=100)
        engine(count([simulated.det]))
        assert (other.status().rate, simulated.camera.rate.get()) == (250, 250)
        other.configure(rate=100)
        assert simulated.camera.status().rate == simulated.camera.rate.get() == 100
    for value in (-1, math.nan, "fast"):
        with pytest.raises(SettingError, match="camera_rate: expected a finite number"):
            simulated.camera.rate.put(value)


SCRIPT = """
import gc, sys
from bluesky import RunEngine
from bluesky.plans import count
from stddaq_ophyd import SimulatedCamera, StdDaqDetector
RE = RunEngine()
for cell in range(2):  # As a cell of a notebook that is run twice.
    camera = SimulatedCamera(sys.argv[2], name="camera")
    det = StdDaqDetector(sys.argv[1], name="det", paths=sys.argv[3], trigger=camera)
    RE(count([det]))
    del camera, det
    gc.collect()
print("end")
"""


@pytest.mark.slow
def test_a_camera_that_is_collected_does_not_keep_the_process(simulated: Any, directory: Path):
    command = [sys.executable, "-c", SCRIPT, simulated.url, simulated.camera.prefix, directory]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert (ended.returncode, ended.stdout.splitlines()[-1]) == (0, "end"), ended.stderr


FLIGHT = """
import sys
from bluesky import RunEngine
from stddaq_ophyd import SimulatedCamera, StdDaqDetector
from stddaq_ophyd.plans import fly
camera = SimulatedCamera(sys.argv[2], name="camera")
camera.rate.put(20)
det = StdDaqDetector(sys.argv[1], name="det", paths=sys.argv[3], trigger=camera)
RE = RunEngine(context_managers=[])
RE.subscribe(lambda name, doc: print(name, flush=True), "stream_datum")
RE(fly([det], 1000, period=0.1))
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_the_run_of_a_process_that_was_killed_is_ended_by_the_next(
    engine: RunEngine, simulated: Any, directory: Path, how: signal.Signals
):
    arguments = (simulated.url, simulated.camera.prefix, str(directory))
    killed = Service([sys.executable, "-c", FLIGHT, *arguments], os.environ)
    killed.wait_for_line("stream_datum", 50)
    killed.send(how)
    killed.wait(timeout=60)
    found = Documents()
    engine(count([simulated.det], 3), found)
    simulated.assert_shown(found, simulated.camera.status().next_id - 3, 3)
    wait_until(lambda: simulated.det.driver_state() == "idle", what="the driver to be idle")


@pytest.mark.parametrize("kind", ["ophyd", "ophyd-async"])
def test_the_run_of_a_staged_device_that_was_collected_is_ended_by_the_next(
    engine: RunEngine, make_rig: MakeRig, kind: str
):
    rig = make_rig()

    def staged() -> Any:
        if kind == "ophyd":
            det: Any = StdDaqDetector(rig.url, name="det", paths=rig.directory)
        else:
            with init_devices():
                det = AsyncStdDaqDetector(rig.url, rig.directory)
        engine(stage_one(det))
        return det

    def stage_one(det: Any) -> Any:
        yield from bps.stage(det, wait=True)
        if kind != "ophyd":
            yield from bps.prepare(det, 1, wait=True)
        # The device stays staged after the plan.
        engine._staged.clear()

    def end(det: Any) -> Any:
        yield from bps.unstage(det, wait=True)

    collected = weakref.ref(staged())

    def is_collected() -> bool:
        engine(bps.null())  # The RunEngine keeps the devices of the last plan.
        gc.collect()
        return collected() is None

    wait_until(is_collected, 60, "the device to be collected")
    assert rig.client.status().is_busy
    det = staged()
    engine(end(det))
    if kind != "ophyd":
        asyncio.run_coroutine_threadsafe(det.disconnect(), engine.loop).result(30)
    wait_until(lambda: rig.client.status().status == "idle", what="the driver to be idle")


def test_the_run_of_another_program_is_not_ended(engine: RunEngine, make_detector: MakeDetector):
    det, camera = make_detector()
    with DriverClient(det.prefix) as client:
        client.start(camera.rig.directory, file_prefix="other_")
        run_id = client.status().run_id
        with pytest.raises(FailedStatus) as failed:
            engine(count([det]))
        assert client.status().run_id == run_id
    text = str(failed.value.__cause__)
    command = re.search(r"`(stddaq stop --url \S+)`", text)
    assert command is not None, text
    # The advice works when it is typed.
    program, *arguments = command[1].split()
    subprocess.run([console_script(program), *arguments], check=True, timeout=60)
    engine(count([det]))


def test_the_run_of_another_detector_that_is_alive_is_not_ended(
    engine: RunEngine, make_detector: MakeDetector
):
    det, _ = make_detector()
    other = StdDaqDetector(det.prefix, name="other", paths=det.paths)
    other.stage().wait(60)
    with pytest.raises(FailedStatus, match="driver is busy"):
        engine(count([det]))
    other.unstage().wait(60)
    engine(count([det]))
