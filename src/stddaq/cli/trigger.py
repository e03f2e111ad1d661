"""`stddaq trigger`: fire the software trigger of a simulated detector."""

from __future__ import annotations

import argparse

from stddaq.daemon.arguments import ArgumentParser, image_count

SUMMARY = "fire the software trigger of a simulator or replay"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("config", help="path to configuration file")
    parser.add_argument(
        "-n",
        "--n-images",
        type=image_count,
        metavar="N",
        help="images of the burst (default: as the source is set)",
    )


def run(args: argparse.Namespace) -> int:
    from stddaq.client.simulator import SimulatorClient
    from stddaq.config import DetectorConfig

    with SimulatorClient(DetectorConfig.load(args.config)) as simulator:
        burst = simulator.trigger(args.n_images)
    print(f"triggered {burst.n_images} images, the first has id {burst.first_id}")
    return 0
