"""Count with a detector device, and read the images that its documents reference.

In one terminal, the services and a simulated detector that waits for its trigger:

    stddaq up services/config/simulated.json -m --source simulate --trigger --rate 100

In another:

    mkdir -p data
    python examples/count.py services/config/simulated.json data
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bluesky import RunEngine
from bluesky.callbacks.best_effort import BestEffortCallback
from bluesky.plans import count

from stddaq.client import DEFAULT_URL
from stddaq.config import DetectorConfig
from stddaq_ophyd import SimulatedCamera, StdDaqDetector
from stddaq_ophyd.handlers import PublishedImagesHandler


def main() -> None:
    parser = argparse.ArgumentParser(description="Count, and read the images that the documents reference.")
    parser.add_argument("config", help="the configuration that the services run with")
    parser.add_argument("directory", type=Path, help="existing directory for the files")
    parser.add_argument("--url", default=DEFAULT_URL, help="the driver")
    parser.add_argument("-n", type=int, default=5, help="points")
    parser.add_argument("--images-per-event", type=int, default=2)
    args = parser.parse_args()

    camera = SimulatedCamera(DetectorConfig.load(args.config).detector_name, name="camera")
    det = StdDaqDetector(args.url, name="det", paths=args.directory, trigger=camera)
    det.images_per_event.put(args.images_per_event)

    RE = RunEngine()  # noqa: N806 (bluesky's own name for it)
    best_effort = BestEffortCallback()
    best_effort.disable_plots()
    RE.subscribe(best_effort)
    resources = []
    RE.subscribe(lambda name, doc: resources.append(doc), "stream_resource")
    RE(count([det], args.n))

    (resource,) = resources
    path = resource["uri"].removeprefix("file://localhost")
    images = PublishedImagesHandler(path, args.images_per_event)
    for point in range(args.n):
        print(f"point {point}: mean of the images {images(point).mean(axis=(1, 2)).compute()}")


if __name__ == "__main__":
    main()
