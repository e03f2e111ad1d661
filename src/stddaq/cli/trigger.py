"""`stddaq trigger`: fire the software trigger of a simulated detector."""

from __future__ import annotations

import argparse

SUMMARY = "fire the software trigger of a simulator or replay"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="path to configuration file")
    parser.add_argument(
        "-n", "--n-images", type=int, metavar="N", help="images of the burst (the source's own setting)"
    )


def run(args: argparse.Namespace) -> int:
    from stddaq.client.simulator import SimulatorClient
    from stddaq.config import DetectorConfig
    from stddaq.errors import ConfigError

    if args.n_images is not None and args.n_images < 1:
        raise ConfigError(f"-n: found {args.n_images}, allowed is 1 or more")
    with SimulatorClient(DetectorConfig.load(args.config)) as simulator:
        burst = simulator.trigger(args.n_images)
    print(f"triggered {burst.n_images} images, the first has id {burst.first_id}")
    return 0
