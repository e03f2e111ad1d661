"""`stddaq aggregate`: make a master file over existing raw files, those of C++ writers included."""

from __future__ import annotations

import argparse
from pathlib import Path

from stddaq.daemon.arguments import ArgumentParser
from stddaq.files.limits import MASTER_FILE_TIMEOUT_S

SUMMARY = "make a master file, which shows all images of a run as one, over existing raw files"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="directory of the run, one of its files, or all its raw files",
    )
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="the master file to write (default: beside the raw files)"
    )
    parser.add_argument("--prefix", help="prefix of the file names, may include a directory (default: file)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing master file")


def run(args: argparse.Namespace) -> int:
    from stddaq.files.aggregate import aggregate_run
    from stddaq.files.opening import isolated
    from stddaq.files.replaceable import check_replaceable

    output = None if args.output is None else Path(args.output)
    if output and args.overwrite:
        isolated(lambda: check_replaceable(output), output)
    paths = [Path(path) for path in args.paths]
    prefix = args.prefix
    if prefix is not None and "/" in prefix:
        # Of a prefix with a directory, relative ones begin at PATH.
        directory, _, prefix = prefix.rpartition("/")
        paths = [(path if path.is_dir() else path.parent) / (directory or "/") for path in paths]
    master = isolated(
        lambda: aggregate_run(paths, output, prefix, args.overwrite), paths[0], MASTER_FILE_TIMEOUT_S
    )
    height, width = master.image_shape
    print(
        f"{master.path}: {master.n_images} images of {height}x{width} {master.dtype} from "
        f"{len(master.raw_files)} raw files, {master.n_gaps} gaps in the ids"
    )
    return 0
