"""`stddaq stop`: end the run in progress, of any client."""

from __future__ import annotations

import argparse
import sys

from stddaq.cli.run_end import TIMEOUT_S, RunNotEndedError, stop_run
from stddaq.cli.text import status_line
from stddaq.daemon.arguments import ArgumentParser, Seconds

SUMMARY = "end the run in progress, and wait for its files"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_driver_url()
    parser.add_argument(
        "--timeout",
        type=Seconds(),
        default=TIMEOUT_S,
        metavar="SECONDS",
        help=f"longest wait for the files of the run (default: {TIMEOUT_S:g})",
    )


def run(args: argparse.Namespace) -> int:
    from stddaq.client import DriverClient

    with DriverClient(args.url) as driver:
        if not driver.latest.is_busy:
            driver.stop()
            print(f"no run is in progress, the driver is {driver.latest.status}")
            return 0
        try:
            *_, last = stop_run(driver, args.timeout)
        except RunNotEndedError as error:
            print(f"stddaq stop: error: {error}", file=sys.stderr)
            return 1
    print(status_line(last))
    return 1 if last.status == "error" else 0
