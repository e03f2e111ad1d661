"""`stddaq repair`: make files that a killed writer left behind openable for everyone."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from stddaq.cli.text import add_url

SUMMARY = "make files that a killed writer left behind openable again"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="*", metavar="FILE", help="raw or metadata file that nobody writes to")
    parser.add_argument(
        "--run", dest="last_run", action="store_true", help="those of the driver's last run, by the driver"
    )
    add_url(parser)


def run(args: argparse.Namespace) -> int:
    from stddaq.errors import StdDaqError
    from stddaq.files.repair import repair

    if args.last_run == bool(args.files):
        print(
            "stddaq repair: error: found --run and FILE, or neither; allowed is one of them", file=sys.stderr
        )
        return 2
    if args.last_run:
        return _repair_run(args.url)
    code = 0
    for name in args.files:
        try:
            print(repair(Path(name)))
        except StdDaqError as error:
            print(f"stddaq repair: error: {error}", file=sys.stderr)
            code = 2
    return code


def _repair_run(url: str) -> int:
    from stddaq.client import DriverClient
    from stddaq.files.repair import RepairResult

    with DriverClient(url) as driver:
        results = driver.repair()
    if not results:
        print("the writers have closed all files of the last run")
    code = 0
    for result in results:
        if result["reason"]:
            print(f"stddaq repair: error: {result['reason']}", file=sys.stderr)
            code = 2
        else:
            print(RepairResult(Path(result["path"]), result["n_images"], result["n_cut"], result["repaired"]))
    return code
