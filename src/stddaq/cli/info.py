"""`stddaq info`: describe raw, metadata and master files."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from stddaq.daemon.arguments import ArgumentParser

SUMMARY = "show what files hold: images, types, gaps, bad images"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help="raw, metadata or master file")


def run(args: argparse.Namespace) -> int:
    from stddaq.errors import StdDaqError
    from stddaq.files.info import describe
    from stddaq.files.opening import isolated
    from stddaq.text import escaped, os_error_text

    code = 0
    for name in args.files:
        path = Path(name)
        try:
            lines = isolated(partial(describe, path), path).lines()
        except (StdDaqError, OSError) as error:
            reason = os_error_text(error) if isinstance(error, OSError) else error
            print(f"stddaq info: error: {escaped(str(reason))}", file=sys.stderr)
            code = 2
        else:
            print("\n".join(map(escaped, lines)))
    return code
