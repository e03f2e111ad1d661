"""Fly scan: take images while a motor moves. Tables and documents follow while images arrive.

Start the services and a simulated detector that waits for its trigger in one terminal:

    stddaq up services/config/simulated.json -m --source simulate --trigger --rate 100

In another:

    mkdir -p data
    python examples/fly_scan.py services/config/simulated.json data -n 1000 --rate 200
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bluesky import RunEngine
from bluesky.callbacks.best_effort import BestEffortCallback
from ophyd.sim import SynAxis

from stddaq.client import DEFAULT_URL
from stddaq.config import DetectorConfig
from stddaq_ophyd import SimulatedCamera, StdDaqDetector
from stddaq_ophyd.plans import fly_scan


def main() -> None:
    parser = argparse.ArgumentParser(description="Take images while a motor moves.")
    parser.add_argument("config", help="the configuration that the services run with")
    parser.add_argument("directory", type=Path, help="existing directory for the files")
    parser.add_argument("--url", default=DEFAULT_URL, help="the driver")
    parser.add_argument("-n", type=int, default=1000, help="images")
    parser.add_argument("--rate", type=float, default=200.0, help="images per second")
    args = parser.parse_args()

    camera = SimulatedCamera(DetectorConfig.load(args.config).detector_name, name="camera")
    camera.rate.put(args.rate)
    det = StdDaqDetector(args.url, name="det", paths=args.directory, trigger=camera)
    # A simulated motor arrives at once. bluesky's annotations do not know ophyd's.
    motor: Any = SynAxis(name="motor")

    RE = RunEngine()  # noqa: N806 (bluesky's own name for it)
    best_effort = BestEffortCallback()
    best_effort.disable_plots()
    RE.subscribe(best_effort)
    RE.subscribe(
        lambda name, doc: print(f"images {doc['indices']['start']} to {doc['indices']['stop']} are readable"),
        "stream_datum",
    )
    RE(fly_scan([det], motor, 0, 180, args.n))


if __name__ == "__main__":
    main()
