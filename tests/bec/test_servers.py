"""Scans of BEC with its real servers: the images are in BEC's master file, and every scan ends cleanly."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  (registers the filters)
import numpy as np
import pytest
from support.processes.bec_servers import BecServers
from support.processes.deployment import Deployment, wait_until

from stddaq.client import DriverClient

pytestmark = [pytest.mark.external, pytest.mark.timeout(600)]


class Beamline:
    """A motor and a simulated detector in BEC."""

    def __init__(self, deployment: Deployment, servers: BecServers) -> None:
        self.deployment, self.servers = deployment, servers
        self.client = servers.client
        self.driver_process, self.url = deployment.start_driver()
        deployment.start_writers()
        simulate = (deployment.stddaq, "simulate", deployment.config_path, "--trigger", "--rate", 100)
        deployment.run(*simulate, "--wait-for-subscribers", 1, ready="ready")
        self.driver = DriverClient(self.url)
        servers.load({"samx": MOTOR, "gf": self.device()})

    def device(self, **config: Any) -> dict[str, Any]:
        """Return the configuration of the detector."""
        return {
            "deviceClass": "beamline_bec.devices.SimulatedStdDaqCamera",
            "deviceConfig": {"prefix": self.deployment.detector_name, "driver_url": self.url, **config},
            "readoutPriority": "async",
            "softwareTrigger": True,
            "enabled": True,
            "readOnly": False,
        }

    def images(self, number: int) -> np.ndarray:
        """Return the images of a scan through BEC's master file."""
        path = self.servers.master(number)
        wait_until(path.exists, 60, str(path))
        with h5py.File(path) as file:
            data: Any = file["entry/collection/file_references/gf/data"]
            return data[:]


MOTOR = {
    "deviceClass": "ophyd_devices.SimPositioner",
    "deviceConfig": {"delay": 0, "limits": [-50, 50], "tolerance": 0.01, "update_frequency": 400},
    "readoutPriority": "baseline",
    "enabled": True,
    "readOnly": False,
}

# BEC loads devices only from the plugin repository of the beamline.
DEVICES = "from stddaq_bec.simulated import SimulatedStdDaqCamera"
LINE_SCAN = "scans.line_scan(dev.samx, -1, 1, steps=5, relative=False, exp_time=0.01, frames_per_trigger=3)"


@pytest.fixture
def beamline(deployment: Deployment, tmp_path: Path) -> Iterator[Beamline]:
    with BecServers(tmp_path, deployment.env, DEVICES) as servers:
        made = Beamline(deployment, servers)
        with made.driver:
            yield made


def test_scans_are_recorded_aborted_and_followed_by_right_ones(beamline: Beamline):
    beamline.client.run(f"{LINE_SCAN}.wait()")
    assert beamline.images(1).shape == (15, 32, 48)
