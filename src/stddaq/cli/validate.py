"""`stddaq validate`: check every file and every image of a run."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from stddaq.daemon.arguments import ArgumentParser

SUMMARY = "check a run: its files, the order, status and readability of its images, its account"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", help="directory of the run, or one of its files")
    parser.add_argument("--prefix", help="prefix of the file names in a directory (default: file)")
    parser.add_argument("--pixels", action="store_true", help="also read and decode the pixels of all images")
    parser.add_argument("--json", action="store_true", help="print the result as a JSON object")


def run(args: argparse.Namespace) -> int:
    from stddaq.cli.progress import Progress
    from stddaq.files.validate_joined import validate
    from stddaq.text import escaped

    with Progress() as progress:
        report = validate(Path(args.path), args.prefix, pixels=args.pixels, on_progress=progress)
    if args.json:
        print(json.dumps(dataclasses.asdict(report) | {"exit_code": report.exit_code}, default=str))
    else:
        print("\n".join(map(escaped, report.lines())))
    return report.exit_code
