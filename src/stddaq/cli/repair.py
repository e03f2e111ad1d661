"""`stddaq repair`: make files that a killed writer left behind openable for everyone."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

SUMMARY = "make files that a killed writer left behind openable again"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help="raw or metadata file that nobody writes to")


def run(args: argparse.Namespace) -> int:
    from stddaq.errors import StdDaqError
    from stddaq.files.repair import repair

    code = 0
    for name in args.files:
        try:
            print(repair(Path(name)))
        except StdDaqError as error:
            print(f"stddaq repair: error: {error}", file=sys.stderr)
            code = 2
    return code
