"""apstools' NXWriter copies the images of all points into its file."""

from __future__ import annotations

import json
import os
from pathlib import Path

import h5py
import numpy as np
import pytest
from support.processes.deployment import Deployment, Service
from support.processes.queue_server import PYTHON

from stddaq.config import DetectorConfig
from stddaq.sources.simulated.scenes import Scene

pytestmark = [pytest.mark.external, pytest.mark.timeout(200)]

SCRIPT = """
import json, sys
from apstools.callbacks import NXWriter
from bluesky import RunEngine
from bluesky.plans import scan
from ophyd.sim import motor
from stddaq_ophyd import SimulatedCamera, StdDaqDetector

url, detector, directory = sys.argv[1:]
camera = SimulatedCamera(detector, name="camera")
det = StdDaqDetector(url, name="det", paths=directory, trigger=camera, documents="AD_HDF5")
det.images_per_event.put(2)
writer = NXWriter()
writer.warn_on_missing_content = False
writer.file_path = directory
RE = RunEngine(context_managers=[])
RE.subscribe(writer.receiver)
RE(scan([det], motor, 0, 1, 3))
writer.wait_writer()
print(json.dumps(str(writer.output_nexus_file)))
"""


def test_nxwriter_copies_the_images_of_all_points(deployment: Deployment, directory: Path):
    _, url = deployment.start_driver()
    deployment.start_writers()
    command = (deployment.stddaq, "simulate", deployment.config_path, "--trigger")
    deployment.run(*command, "--wait-for-subscribers", 1, ready="ready")
    arguments = (url, deployment.detector_name, str(directory))
    plan = Service([str(PYTHON), "-c", SCRIPT, *arguments], os.environ | deployment.env)
    assert plan.wait(timeout=150) == 0, plan.output
    scene = Scene.of(DetectorConfig.parse(deployment.config), "rings")
    with h5py.File(json.loads(plan.stdout[-1])) as file:
        images = file["/entry/instrument/bluesky/streams/primary/det_image/value"]
        assert isinstance(images, h5py.Dataset)
        np.testing.assert_array_equal(images[()], [scene.image(i) for i in range(6)])
