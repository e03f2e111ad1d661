"""`stddaq repair`: make files of a killed writer valid again."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from stddaq.daemon.arguments import ArgumentParser

SUMMARY = "repair files that a killed writer did not close"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "files", nargs="*", metavar="FILE", help="raw or metadata file that no process writes to"
    )
    parser.add_argument(
        "--run", dest="last_run", action="store_true", help="let the driver repair the files of its last run"
    )
    parser.add_driver_url()


def run(args: argparse.Namespace) -> int:
    from stddaq.errors import StdDaqError
    from stddaq.files.repair import limits_of_the_check, repair, visible_processes
    from stddaq.text import escaped, os_error_text

    if args.last_run == bool(args.files):
        print("stddaq repair: error: expected either --run or FILE, got both or neither", file=sys.stderr)
        return 2
    if args.last_run:
        return _repair_run(args.url)
    code, n_repaired = 0, 0
    for name in args.files:
        try:
            result = repair(Path(name))
        except (StdDaqError, OSError) as error:
            reason = os_error_text(error) if isinstance(error, OSError) else error
            print(f"stddaq repair: error: {escaped(str(reason))}", file=sys.stderr)
            code = 2
        else:
            print(escaped(str(result)))
            n_repaired += result.repaired
    if n_repaired:
        print(limits_of_the_check(visible_processes()))
    return code


def _repair_run(url: str) -> int:
    from stddaq.client import DriverClient
    from stddaq.files.repair import RepairResult, limits_of_the_check
    from stddaq.text import escaped

    with DriverClient(url) as driver:
        results = driver.repair()
    if not results:
        print("the writers have closed all files of the last run")
    code = 0
    for result in results:
        if result["reason"]:
            print(f"stddaq repair: error: {escaped(result['reason'])}", file=sys.stderr)
            code = 2
        else:
            print(RepairResult(Path(result["path"]), result["n_images"], result["n_cut"], result["repaired"]))
    if any(result["repaired"] for result in results):
        print(limits_of_the_check("a process that the driver can see"))
    return code
