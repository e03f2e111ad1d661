"""`stddaq plot-missing`: a picture of the images that a run lacks."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from stddaq.daemon.arguments import ArgumentParser

SUMMARY = "draw which images of a run are damaged, overwritten or skipped, and when"
FORMATS = ("png", "svg", "pdf")


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", help="directory of the run, or one of its files")
    parser.add_argument("--prefix", help="prefix of the file names in a directory (default: file)")
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        default="missing.png",
        help="the picture, .png, .svg or .pdf (default: missing.png)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing picture")


def run(args: argparse.Namespace) -> int:
    from stddaq.errors import OutputExistsError, StdDaqError
    from stddaq.files.opening import isolated
    from stddaq.text import mismatch

    path, output = Path(args.path), Path(args.output)
    if output.suffix.removeprefix(".") not in FORMATS:
        expected = " or ".join(f".{one}" for one in FORMATS)
        raise StdDaqError(mismatch(f"picture {output}", f"a name that ends in {expected}", "another one"))
    try:
        isolated(partial(_draw, path, args.prefix, output, args.overwrite), path)
    except FileExistsError as error:
        raise OutputExistsError(f"{error}; --overwrite replaces it") from error
    print(output)
    return 0


def _draw(path: Path, prefix: str | None, output: Path, overwrite: bool) -> None:
    from stddaq.errors import StdDaqError
    from stddaq.files.reading import open_run
    from stddaq.new_file import replacing
    from stddaq.text import mismatch

    run = open_run(path, prefix, growing=True)
    with replacing(output, overwrite=overwrite) as new, new.opened.open("wb") as file:
        try:
            figure = run.plot_missing()
        except ModuleNotFoundError as error:
            advice = "pip install 'stddaq[analysis]'"
            raise StdDaqError(mismatch("package matplotlib", "it, for pictures", "none", advice)) from error
        figure.savefig(file, format=output.suffix.removeprefix("."))
