"""Record a burst of images from a Python script, without Bluesky, and read it back.

In one terminal, the services and a simulated detector that waits for its trigger:

    stddaq up services/config/simulated.json -m --source simulate --trigger --rate 100

In another:

    mkdir -p data
    python examples/record_with_client.py services/config/simulated.json data
"""

from __future__ import annotations

import argparse
from pathlib import Path

from stddaq import open_run
from stddaq.client import DEFAULT_URL, DriverClient
from stddaq.client.simulator import SimulatorClient
from stddaq.config import DetectorConfig


def main() -> None:
    parser = argparse.ArgumentParser(description="Record a burst of images and read it back.")
    parser.add_argument("config", help="the configuration that the services run with")
    parser.add_argument("directory", type=Path, help="existing directory for the files")
    parser.add_argument("--url", default=DEFAULT_URL, help="the driver")
    parser.add_argument("--n-images", type=int, default=50)
    args = parser.parse_args()

    with DriverClient(args.url) as driver, SimulatorClient(DetectorConfig.load(args.config)) as detector:
        driver.start(args.directory, n_image=args.n_images, file_prefix="burst", overwrite=True)
        # From here on no image is missed: the files are open and the driver has subscribed.
        driver.wait_until_ready(timeout=10)
        detector.trigger(args.n_images)
        for status in driver.watch_run():
            print(f"{status.status}: {status.count or 0} images")
        driver.wait_until_saved(timeout=10)  # Raises RunFailedError with the reason, if it failed.
        account = driver.last_result()

    assert account is not None
    run = open_run(account["files"]["master"])
    print(f"{run.n_images} images, ids {run.image_ids[0]} to {run.image_ids[-1]}")
    for position, image in enumerate(run.images[:3]):
        print(f"image {run.image_ids[position]}: mean {image.mean():.1f}, max {image.max()}")


if __name__ == "__main__":
    main()
