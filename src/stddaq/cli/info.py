"""`stddaq info`: describe raw, metadata and master files, or list the runs of a directory."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

from stddaq.cli.text import table
from stddaq.daemon.arguments import ArgumentParser

SUMMARY = "show what files hold: images, types, gaps, bad images; or the runs of a directory"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "paths", nargs="+", metavar="PATH", help="raw, metadata or master file, or a directory with runs"
    )
    parser.add_argument(
        "--json", action="store_true", help="print a JSON array of the files, and of the runs of directories"
    )


def run(args: argparse.Namespace) -> int:
    from stddaq.errors import StdDaqError
    from stddaq.text import escaped, os_error_text

    code, found = 0, list[Any]()
    for path in map(Path, args.paths):
        try:
            values, lines = _runs(path) if path.is_dir() else _file(path)
        except (StdDaqError, OSError) as error:
            reason = os_error_text(error) if isinstance(error, OSError) else error
            print(f"stddaq info: error: {escaped(str(reason))}", file=sys.stderr)
            code = 2
        else:
            found += map(dataclasses.asdict, values)
            if not args.json:
                print("\n".join(map(escaped, lines)))
    if args.json:
        print(json.dumps(found, default=str))
    return code


def _file(path: Path) -> tuple[list[Any], list[str]]:
    from stddaq.files.info import describe
    from stddaq.files.opening import isolated

    info = isolated(partial(describe, path), path)
    return [info], info.lines()


def _runs(directory: Path) -> tuple[list[Any], list[str]]:
    from stddaq.files.run_list import COLUMNS, list_runs

    runs = list(list_runs(directory))
    if not runs:
        return [], [f"{directory}: no files of runs"]
    return list(runs), table([COLUMNS, *(run.cells() for run in runs)])
