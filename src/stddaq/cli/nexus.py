"""`stddaq nexus`: make a file of an application definition of NeXus over the raw files of runs."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from stddaq.daemon.arguments import ArgumentParser
from stddaq.errors import ConfigError
from stddaq.files.limits import MASTER_FILE_TIMEOUT_S
from stddaq.text import mismatch

if TYPE_CHECKING:
    from stddaq.files.application_metadata import Layer
    from stddaq.files.nxmx import NXmxFile
    from stddaq.files.reading import Run

SUMMARY = "make a file for crystallography (NXmx) or tomography (NXtomo) over the raw files of runs"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="directory of the run, or one of its files; for NXtomo also several in the order of the file, "
        "as dark=RUN, flat=RUN, projection=RUN",
    )
    parser.add_argument(
        "--definition", required=True, choices=["NXmx", "NXtomo"], help="application definition of the file"
    )
    parser.add_argument(
        "--keys",
        metavar="KIND:NUMBER,...",
        help="NXtomo: what the images of a single run are, such as dark:5,flat:7,projection:30",
    )
    parser.add_argument(
        "--angles",
        metavar="START:STOP",
        help="NXtomo: angles of the projections in degrees, STOP not included; or a file of numpy FILE.npy",
    )
    parser.add_argument(
        "--documents",
        metavar="FILE",
        help="NXtomo: documents of the Bluesky scan that took the images, which have keys and angles; a file "
        "of JSONLinesWriter or JSONWriter",
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
        help="the file to write (default: <prefix>_master.h5 or <prefix>_tomo.h5 beside the run)",
    )
    parser.add_argument(
        "--incomplete",
        action="store_true",
        help="write the file without the values that are missing, and without its definition",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file over raw files")


def run(args: argparse.Namespace) -> int:
    from stddaq.files.opening import isolated

    if args.definition == "NXtomo":
        from stddaq.cli.nxtomo import create, summary

        tomogram = isolated(lambda: create(args), Path(args.runs[-1]), MASTER_FILE_TIMEOUT_S)
        print(summary(tomogram))
        for doubt in tomogram.doubts:
            print(f"stddaq nexus: warning: {doubt}", file=sys.stderr)
        return 0
    if len(args.runs) > 1 or args.keys or args.angles or args.documents:
        got = "several, --keys, --angles or --documents"
        raise ConfigError(mismatch("stddaq nexus", "one run for NXmx", got))
    made = isolated(lambda: _create_nxmx(args), Path(args.runs[0]), MASTER_FILE_TIMEOUT_S)
    height, width = made.image_shape
    lost = made.n_frames - made.n_mapped
    print(
        f"{made.path}: {made.n_frames} frames of {height}x{width} {made.dtype}"
        + (f", {lost} of them without an image" if lost else "")
        + (f"; not NXmx: without {', '.join(made.missing)}" if made.missing else "")
    )
    return 0


def layers_of(args: argparse.Namespace, run: Run) -> list[Layer]:
    """Return the metadata of a run, those of its files first. Raise `ConfigError`."""
    from stddaq.files.application_metadata import layer_of_file, layer_of_options, layers_of_run

    return [
        *layers_of_run(run.account, run.nexus),
        *(layer_of_file(Path(name)) for name in args.metadata_files),
        layer_of_options(args.values),
    ]


def output_of(args: argparse.Namespace, default: Path) -> Path:
    """Return the file to write. Raise `OutputExistsError` if it is one that must not be replaced."""
    from stddaq.files.replaceable import check_replaceable

    path = Path(args.output) if args.output else default
    if args.overwrite:
        check_replaceable(path)
    return path


def _create_nxmx(args: argparse.Namespace) -> NXmxFile:
    from stddaq.files.application_metadata import expected_images, merge
    from stddaq.files.names import find_run
    from stddaq.files.nxmx import create_nxmx_file
    from stddaq.files.reading import open_run
    from stddaq.files.run import read_run

    opened = open_run(args.runs[0], args.prefix)
    account = opened.account or {}
    raw_files = [raw.path for raw in opened.raw_files]
    return create_nxmx_file(
        output_of(args, find_run(raw_files[0], args.prefix).nxmx),
        read_run(raw_files),
        merge(layers_of(args, opened), expected_images(account)),
        account=json.dumps(account) if account else None,
        incomplete=args.incomplete,
        overwrite=args.overwrite,
    )
