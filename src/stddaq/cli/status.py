"""`stddaq status`: show the state of the driver, and its last run."""

from __future__ import annotations

import argparse
import json

from stddaq.cli.text import status_line
from stddaq.daemon.arguments import ArgumentParser

SUMMARY = "show the state of the driver, and how the last run ended"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_driver_url()
    parser.add_argument("--json", action="store_true", help="print the driver's messages as JSON")


def run(args: argparse.Namespace) -> int:
    from stddaq.cli.account import account_lines
    from stddaq.client import DriverClient, UnsupportedError

    with DriverClient(args.url) as driver:
        status = driver.status()
        try:
            result = driver.last_result()
        except UnsupportedError:
            result = None
    if args.json:
        print(json.dumps({"status": dict(status.raw), "last_result": result}))
        return 0
    print(status_line(status))
    if result is not None:
        print("last run:")
        print("\n".join(f"  {line}" for line in account_lines(result)))
    return 0
