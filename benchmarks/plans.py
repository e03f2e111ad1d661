"""The cost of Bluesky plans with the detector device: time per point of a count, documents of a fly scan.

Daemons and RunEngine are real; the camera is the simulator with a software trigger. The reference for a point
is `ophyd.sim.det` in the same RunEngine, which records nothing.
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bluesky import RunEngine
from bluesky.plans import count
from ophyd.sim import hw
from ophyd_async.core import init_devices
from rig import Rig, end, wait_ready
from tables import Table, spread

from stddaq.client import DriverClient
from stddaq_ophyd import AsyncStdDaqDetector, SimulatedCamera, SimulatorCamera, StdDaqDetector
from stddaq_ophyd.plans import fly

N_POINTS = 200
ROUNDS = 5
FLIGHT_HZ = 5000.0
FLIGHT_IMAGES = 25_000
FLIGHT_ROUNDS = 3
STDDAQ = Path(sys.executable).parent / "stddaq"


def points() -> Table:
    """Measure milliseconds per point of `count`, for the devices and `ophyd.sim.det`."""
    table = Table(
        "points",
        "Time per point of a count with software trigger",
        f"`RE(count([det], {N_POINTS}))`, median of {ROUNDS} rounds (min-max), 2 writers. Target with one "
        "image of 16x16 pixels: at most 5 ms more than `ophyd.sim.det` in the same run; with ophyd-async at "
        "most 15 ms. The mean is that of the last image of a point, which the ophyd device reads unless it "
        "is omitted.",
        ("device", "pixels", "images per point", "mean", "ophyd.sim.det ms", "device ms", "more, ms"),
    )
    every = ((1, "read"), (1, "omitted"), (5, "read"))
    for shape, cases in (("none", every), ("a", every[:2])):
        with ExitStack() as stack:
            rig = stack.enter_context(Rig(shape, n_writers=2, with_source=False))
            stack.callback(end, simulate(rig, "--trigger"))
            engine = RunEngine({}, context_managers=[])
            pixels = "{}x{}".format(*rig.config.image_shape)
            camera = SimulatedCamera(rig.config.detector_name, name="camera")
            stack.callback(camera.destroy)
            camera.rate.put(0)
            det = StdDaqDetector(rig.url, name="det", paths=rig.files, trigger=camera)
            for n_images, mean in cases:
                det.images_per_event.put(n_images)
                det.mean.kind = "omitted" if mean == "omitted" else "hinted"
                times = _beside_simulated_signal(engine, det, rig)
                table.add("ophyd", pixels, n_images, mean, *times)
            table.add("ophyd-async", pixels, 1, "none", *_async_points(engine, rig))
    return table


def _async_points(engine: RunEngine, rig: Rig) -> tuple[float, float, str]:
    camera = SimulatorCamera(rig.config.detector_name)
    camera.wanted["rate"] = 0.0
    with init_devices():
        det = AsyncStdDaqDetector(rig.url, rig.files, trigger=camera)
    try:
        return _beside_simulated_signal(engine, det, rig)
    finally:
        asyncio.run_coroutine_threadsafe(det.disconnect(), engine.loop).result(10)
        camera.close()


def _beside_simulated_signal(engine: RunEngine, det: Any, rig: Rig) -> tuple[float, float, str]:
    """Return milliseconds per point of `ophyd.sim.det`, of `det`, and the difference with its spread."""
    signal, device = [], []
    for _ in range(ROUNDS):
        signal.append(seconds_per_point(engine, hw(str(rig.files)).det))
        rig.clear(0)
        device.append(seconds_per_point(engine, det))
    more = [(b - a) * 1e3 for a, b in zip(signal, device, strict=True)]
    return statistics.median(signal) * 1e3, statistics.median(device) * 1e3, spread(more)


def flights() -> Table:
    """Measure how late the documents of a fly scan are, and the rate of the run."""
    table = Table(
        "flights",
        "Documents of a fly scan",
        f"`fly` of {FLIGHT_IMAGES} images of 16x16 pixels at {FLIGHT_HZ:g} Hz, 2 writers. Late is the "
        "longest time from an image to the document that references it; target: at most a second. For "
        "comparison, a run of the same images without a plan; rates are of whole driver runs, which "
        "start earlier with a plan.",
        ("round", "documents", "late, s", "images/s", "without plan", "lost images"),
    )
    with ExitStack() as stack:
        rig = stack.enter_context(Rig("none", n_writers=2, with_source=False))
        stack.callback(end, simulate(rig, "--trigger"))
        engine = RunEngine({}, context_managers=[])
        camera = SimulatedCamera(rig.config.detector_name, name="camera")
        stack.callback(camera.destroy)
        camera.rate.put(FLIGHT_HZ)
        det = StdDaqDetector(rig.url, name="det", paths=rig.files, trigger=camera)
        for i in range(FLIGHT_ROUNDS):
            flight = Flight()
            engine(fly([det], FLIGHT_IMAGES), flight)
            rate, lost = flight.rate(rig)
            table.add(i + 1, flight.n_documents, flight.latest_s, rate, bare_rate(rig, camera), lost)
    return table


class Flight:
    """Notes the time of the documents of a flight, and the images that they reference."""

    def __init__(self) -> None:
        self.n_documents = 0
        self.latest_s = 0.0
        self._began = 0.0

    def __call__(self, name: str, doc: Any) -> None:
        if name == "descriptor" and not self._began:
            self._began = time.perf_counter()  # The camera is triggered after this document.
        elif name == "stream_datum":
            self.n_documents += 1
            taken = self._began + doc["indices"]["start"] / FLIGHT_HZ
            self.latest_s = max(self.latest_s, time.perf_counter() - taken)

    def rate(self, rig: Rig) -> tuple[float, int]:
        """Return images per second of the driver run, and the number of lost images."""
        with DriverClient(rig.url) as client:
            account = client.last_result()
        assert account is not None
        lost = FLIGHT_IMAGES - account["n_good"] + account["n_skipped"]
        return account["count"] / account["duration_s"], lost


def bare_rate(rig: Rig, camera: SimulatedCamera) -> float:
    """Return images per second of a run of the same images without a plan."""
    with DriverClient(rig.url) as client:
        client.start(rig.files, n_image=FLIGHT_IMAGES, overwrite=True)
        client.wait_until_ready(10)
        camera.fire(FLIGHT_IMAGES)
        client.wait_until_saved(60)
        account = client.last_result()
    assert account is not None
    return account["count"] / account["duration_s"]


def seconds_per_point(engine: RunEngine, detector: Any) -> float:
    """Return the time per point from the second event of a count to the last, without staging."""
    times: list[float] = []

    def note(name: str, doc: Any) -> None:
        if name == "event":
            times.append(time.perf_counter())

    engine(count([detector], N_POINTS), note)
    return (times[-1] - times[0]) / (N_POINTS - 1)


def simulate(rig: Rig, *options: object) -> subprocess.Popen[str]:
    """Start the simulator of a rig without a source of its own."""
    command = [str(STDDAQ), "simulate", str(rig.config_path), *map(str, options)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_ready(process)
    return process
