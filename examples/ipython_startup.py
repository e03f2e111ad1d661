"""Start an IPython session with a RunEngine, the detector, its camera and live tables.

    stddaq up services/config/simulated.json -m --source simulate --trigger --rate 100
    mkdir -p data
    ipython -i examples/ipython_startup.py

To make it a profile, copy it to `~/.ipython/profile_stddaq/startup/`, then `ipython --profile=stddaq`. The
variables STDDAQ_CONFIG, STDDAQ_URL and STDDAQ_DATA name the configuration, the driver and the directory of
the files.
"""

# ruff: noqa: F401 (names for the prompt)

import os
from pathlib import Path

from bluesky import RunEngine
from bluesky.callbacks.best_effort import BestEffortCallback
from bluesky.plans import count, grid_scan, scan
from bluesky.utils import ProgressBarManager
from ophyd.sim import SynAxis

from stddaq.config import DetectorConfig
from stddaq_ophyd import SimulatedCamera, StdDaqDetector
from stddaq_ophyd.plans import fly, fly_scan, tomography

config = DetectorConfig.load(os.environ.get("STDDAQ_CONFIG", "services/config/simulated.json"))

RE = RunEngine()
bec = BestEffortCallback()
bec.disable_plots()
RE.subscribe(bec)
RE.waiting_hook = ProgressBarManager()  # pyright: ignore[reportAttributeAccessIssue]

motor, motor1, motor2 = (SynAxis(name=name) for name in ("motor", "motor1", "motor2"))
camera = SimulatedCamera(config.detector_name, name="camera")
det = StdDaqDetector(
    os.environ.get("STDDAQ_URL", "ws://127.0.0.1:8080"),
    name="det",
    paths=Path(os.environ.get("STDDAQ_DATA", "data")),
    trigger=camera,
)

print(
    "RE(count([det], 5)), RE(scan([det], motor, 0, 10, 11)), RE(fly([det], 1000)); det.summary()\n"
    "By hand: det.stage().wait(), det.trigger().wait(), det.read(), det.unstage().wait()"
)
