"""Plans run by blueapi: it finds them, checks their arguments, and chooses devices by their annotations."""

from __future__ import annotations

from pathlib import Path

import h5py
import pytest
from support.processes.blueapi_server import BlueapiServer
from support.processes.deployment import Deployment

pytestmark = [pytest.mark.external, pytest.mark.timeout(300)]

SCRIPT = """
from ophyd import Signal
from ophyd.sim import SynAxis
from stddaq_ophyd import SimulatedCamera, StdDaqDetector

camera = SimulatedCamera({detector!r}, name="camera")
det = StdDaqDetector({url!r}, name="det", paths={directory!r}, trigger=camera)
devices = [det, Signal(name="shutter", value=0), *(SynAxis(name=n) for n in ("motor", "sample", "rotation"))]
"""


def test_all_plans_run_with_devices_by_name(deployment: Deployment, directory: Path, tmp_path: Path):
    _, url = deployment.start_driver()
    deployment.start_writers()
    command = (deployment.stddaq, "simulate", deployment.config_path, "--trigger")
    deployment.run(*command, "--wait-for-subscribers", 1, ready="ready")
    script = SCRIPT.format(detector=deployment.detector_name, url=url, directory=str(directory))
    with BlueapiServer(tmp_path, script, ["stddaq_ophyd.plans"]) as server:
        plans = {plan["name"]: plan["schema"] for plan in server.ask("GET", "/plans")["plans"]}
        assert plans.keys() == {"fly", "fly_scan", "tomography"}
        assert plans["fly"]["properties"]["detectors"]["items"]["type"] == "bluesky.protocols.Readable"
        options = {"shutter": "shutter", "sample": "sample", "sample_in": 0, "sample_out": 5}
        axis = {"start": 0, "stop": 1, "num": 6}
        for plan, params in (
            ("fly", {"num": 20}),
            ("fly_scan", {"motor": "motor"} | axis),
            ("tomography", {"rotation": "rotation", "n_darks": 1, "n_flats": 1} | axis | options),
        ):
            done = server.run(plan, detectors=["det"], **params)
            assert done["errors"] == [], (done, server.service.output)
    for number, n_images in ((1, 20), (2, 6)):
        with h5py.File(directory / f"det_{number:05d}_Published.h5") as file:
            images = file["entry/data/data"]
            assert isinstance(images, h5py.Dataset)
            assert len(images) == n_images
    assert len(list(directory.glob("det_00003_Published*.h5"))) == 3
