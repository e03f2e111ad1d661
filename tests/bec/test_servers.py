"""Scans of BEC with its real servers: the images are in BEC's master file, and every scan ends cleanly."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  (registers the filters)
import numpy as np
import pytest
from support.processes.bec_servers import MOTOR, BecServers, is_complete
from support.processes.deployment import Deployment, wait_until

from stddaq.client import DriverClient

pytestmark = [pytest.mark.external, pytest.mark.timeout(600)]


class Beamline:
    """A motor and a simulated detector in BEC."""

    def __init__(self, deployment: Deployment, servers: BecServers) -> None:
        self.deployment, self.servers = deployment, servers
        self.client = servers.client
        self.process, self.url = deployment.start_driver()
        deployment.start_writers()
        simulate = (deployment.stddaq, "simulate", deployment.config_path, "--trigger", "--rate", 100)
        deployment.run(*simulate, "--wait-for-subscribers", 1, ready="ready")
        servers.load(MOTOR + self.device())
        self.n_scans = 0

    def device(self) -> str:
        """Return the configuration of the detector."""
        return f"""
gf:
  deviceClass: beamline_bec.devices.SimulatedStdDaqCamera
  deviceConfig: {{prefix: {self.deployment.detector_name}, driver_url: "{self.url}"}}
  readoutPriority: async
  softwareTrigger: true
  enabled: true
  readOnly: false
"""

    def scan(self, call: str, n_images: int) -> None:
        """Do a scan to its end. Its images are in BEC's master file, with consecutive ids."""
        self.client.run(f"{call}.wait(timeout=60)")
        assert len(self.finished_images()) == n_images
        self.assert_idle()

    def begin(self, n_images: int = 5) -> None:
        """Begin a long scan, and wait until it has `n_images`."""
        self.client.run(f"report = {LONG_SCAN}")
        with DriverClient(self.url) as driver:
            driver.wait_for(lambda status: (status.count or 0) >= n_images, 60, f"{n_images} images")

    def fails(self) -> str:
        """Wait for the end of the scan, which must not complete. Return BEC's alarms since the last call."""
        self.client.begin("report.wait(timeout=60)")
        assert "ScanAbortion" in self.client.answer()["error"]
        alarms = self.client.run(
            "result = [str(alarm) for alarm in client.alarm_handler.alarms_stack]\n"
            "client.alarm_handler.clear()"
        )
        return "\n".join(alarms)

    def finished_images(self) -> np.ndarray:
        """Return the images of the next scan through BEC's master file; the simulator made them all."""
        self.n_scans += 1
        path = self.servers.master(self.n_scans)
        wait_until(lambda: is_complete(path), 60, str(path))
        with h5py.File(path) as file:
            gf: Any = file["entry/collection/file_references/gf"]
            data = gf["data"][:]
        with h5py.File(path.with_name(path.name.replace("master", "gf_Master"))) as file:
            ids: Any = file["entry/data/image_id"]
            assert np.array_equal(np.diff(ids[:]), np.ones(len(data) - 1))
        return data

    def assert_idle(self) -> None:
        with DriverClient(self.url) as driver:
            driver.wait(("idle",), 20)


# BEC loads devices only from the plugin repository of the beamline.
DEVICES = "from stddaq_bec.simulated import SimulatedStdDaqCamera"
# A device server that starts makes all clients load the devices again, some time after it is ready.
WAIT_FOR_DEVICES = """
import time
end = time.monotonic() + 60
present_since = time.monotonic()
while time.monotonic() - present_since < 2:
    assert time.monotonic() < end, "no devices"
    if not {"samx", "gf"} <= set(dev):
        present_since = time.monotonic()
    time.sleep(0.05)
"""
LINE_SCAN = "scans.line_scan(dev.samx, -1, 1, steps=5, relative=False, exp_time=0.01, frames_per_trigger=3)"


LONG_SCAN = "scans.line_scan(dev.samx, -1, 1, steps=200, relative=False, exp_time=0.01)"


@pytest.fixture(scope="module")
def beamline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Beamline]:
    """Return a beamline for all tests, because its processes start slowly."""
    directory = tmp_path_factory.mktemp("beamline")
    with ExitStack() as close:
        deployment = Deployment(directory)
        close.callback(deployment.close)
        servers = close.enter_context(BecServers(directory, deployment.env, DEVICES))
        yield Beamline(deployment, servers)


def test_scans_are_right_after_others_that_were_aborted_halted_or_paused(beamline: Beamline):
    beamline.scan(LINE_SCAN, 15)
    beamline.scan("scans.acquire(burst_at_each_point=4, exp_time=0.01, frames_per_trigger=2)", 8)

    for request in ("request_scan_abortion", "request_scan_halt"):
        beamline.begin()
        beamline.client.run(f"client.queue.{request}()")
        beamline.assert_idle()
        beamline.fails()
        assert len(beamline.finished_images()) >= 5
        beamline.scan(LINE_SCAN, 15)

    beamline.begin()
    beamline.client.run("client.queue.request_scan_interruption(deferred_pause=False)")
    wait_until(lambda: beamline.client.run("result = report.status") == "PAUSED", 60, "a pause")
    beamline.client.run("client.queue.request_scan_continuation()\nreport.wait(timeout=60)")
    assert len(beamline.finished_images()) == 200


def test_a_killed_driver_fails_the_scan_and_a_killed_device_server_not_the_next_one(beamline: Beamline):
    beamline.begin()
    beamline.process.kill()
    assert f"driver {beamline.url}" in beamline.fails()
    assert beamline.client.run("result = dev.gf.driver_state()")["status"] == "unreachable"
    port = beamline.url.rpartition(":")[2]
    beamline.deployment.start("std_det_driver", "--port", port)
    beamline.n_scans += 1
    beamline.scan(LINE_SCAN, 15)

    # A device server that is killed leaves its run, which the next scan ends.
    beamline.begin()
    beamline.servers.servers["bec-device-server"].kill()
    beamline.client.run("client.queue.request_scan_abortion()")
    beamline.servers.restart("bec-device-server")
    beamline.client.run(WAIT_FOR_DEVICES)
    beamline.n_scans += 1
    beamline.scan(LINE_SCAN, 15)
