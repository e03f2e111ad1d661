"""`stddaq nexus`: make a file of an application definition of NeXus over the raw files of a run."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from stddaq.daemon.arguments import ArgumentParser
from stddaq.files.limits import MASTER_FILE_TIMEOUT_S

if TYPE_CHECKING:
    from stddaq.files.nxmx import NXmxFile

SUMMARY = "make a file for programs of crystallography (NXmx) over the raw files of a run"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("path", metavar="RUN", help="directory of the run, or one of its files")
    parser.add_argument(
        "--definition", required=True, choices=["NXmx"], help="application definition of the file"
    )
    parser.add_argument("--prefix", help="prefix of the file names (default: file)")
    parser.add_argument(
        "--from",
        dest="metadata_files",
        action="append",
        default=[],
        metavar="META.json",
        help="file of metadata; the values of later ones replace those of earlier ones",
    )
    parser.add_argument(
        "--set",
        dest="values",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="one value of the metadata, such as detector.distance_m=0.2",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="the file to write (default: <prefix>_master.h5 beside the run)",
    )
    parser.add_argument(
        "--incomplete",
        action="store_true",
        help="write the file without the values that are missing, and without its definition",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")


def run(args: argparse.Namespace) -> int:
    from stddaq.files.opening import isolated

    made = isolated(lambda: _create(args), Path(args.path), MASTER_FILE_TIMEOUT_S)
    height, width = made.image_shape
    lost = made.n_frames - made.n_mapped
    print(
        f"{made.path}: {made.n_frames} frames of {height}x{width} {made.dtype}"
        + (f", {lost} of them without an image" if lost else "")
        + (f"; not NXmx: without {', '.join(made.missing)}" if made.missing else "")
    )
    return 0


def _create(args: argparse.Namespace) -> NXmxFile:
    from stddaq.files.application_metadata import (
        expected_images,
        layer_of_account,
        layer_of_file,
        layer_of_options,
        layers_of_origins,
        merge,
    )
    from stddaq.files.names import find_run
    from stddaq.files.nxmx import create_nxmx_file
    from stddaq.files.reading import open_run
    from stddaq.files.run import read_run

    opened = open_run(args.path, args.prefix)
    account = opened.account or {}
    layers = [
        layer_of_account(account),
        *layers_of_origins(opened.nexus or {}),
        *(layer_of_file(Path(name)) for name in args.metadata_files),
        layer_of_options(args.values),
    ]
    raw_files = [raw.path for raw in opened.raw_files]
    return create_nxmx_file(
        Path(args.output) if args.output else find_run(raw_files[0], args.prefix).nxmx,
        read_run(raw_files),
        merge(layers, expected_images(account)),
        account=json.dumps(account) if account else None,
        incomplete=args.incomplete,
        overwrite=args.overwrite,
    )
