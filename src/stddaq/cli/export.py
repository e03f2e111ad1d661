"""`stddaq export`: one file of a run that other programs open without the raw files."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from stddaq.daemon.arguments import ArgumentParser

SUMMARY = "copy a run into one HDF5 file, a TIFF file or a Zarr group, and compare every image"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", help="directory of the run, or one of its files")
    parser.add_argument("out", metavar="OUT", help="the file to make: .h5, .hdf5, .nxs, .tif, .tiff or .zarr")
    parser.add_argument("--prefix", help="prefix of the file names in a directory (default: file)")
    parser.add_argument(
        "--format", choices=("hdf5", "tiff", "zarr"), help="format of a file with another name"
    )
    parser.add_argument(
        "--losses",
        choices=("error", "fill", "drop"),
        default="error",
        help="overwritten and failed images: refuse the run (default), show them as the largest value, "
        "or leave them out",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="write nothing; say what would be read, and the size of OUT"
    )


def run(args: argparse.Namespace) -> int:
    from stddaq.cli.progress import Progress
    from stddaq.cli.stop_signals import stop_signals
    from stddaq.files.export.plan import plan_export
    from stddaq.files.export.run import export_run
    from stddaq.files.export.source import open_sources
    from stddaq.files.opening import isolated
    from stddaq.text import escaped

    path, out = Path(args.path), Path(args.out)
    # HDF5 may crash over the metadata of a damaged file, or not finish reading them.
    isolated(lambda: len(open_sources(path, args.prefix, "fill")), path)
    plan = plan_export(path, out, args.prefix, format=args.format, losses=args.losses)
    if args.dry_run:
        print("\n".join(map(escaped, plan.lines())))
        return 0 if plan.fits else 1
    try:
        # An exception of a signal handler is lost if it comes while h5py removes an object.
        with stop_signals((signal.SIGINT, signal.SIGTERM)) as asked, Progress() as progress:

            def on_progress(what: str, done: int, total: int) -> None:
                progress(what, done, total)
                if asked:
                    raise KeyboardInterrupt

            n_images = export_run(
                path, out, args.prefix, format=args.format, losses=args.losses, on_progress=on_progress
            )
    except KeyboardInterrupt:
        print("stddaq export: interrupted; the same command continues it", file=sys.stderr)
        raise
    for made in plan.outs:
        print(f"{made}: {n_images} images, all compared with the run")
    return 0
