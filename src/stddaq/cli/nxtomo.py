"""The part of `stddaq nexus` that makes NXtomo files: which images are darks, flats and projections.

The options say so, or the documents of a scan of Bluesky.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stddaq.errors import ConfigError, FileLayoutError
from stddaq.text import mismatch

if TYPE_CHECKING:
    from stddaq.files.nxtomo import NXtomoFile
    from stddaq.files.run import RecordedRun
    from stddaq.files.scanned_runs import ScannedRun

KINDS = ("projection", "flat", "dark")


def summary(made: NXtomoFile) -> str:
    """Return what the file holds, in one line."""
    height, width = made.image_shape
    counts = ", ".join(f"{n} {kind}" for kind, n in made.n_images.items() if n)
    lacks = f"; not NXtomo: without {', '.join(made.missing)}" if made.missing else ""
    return f"{made.path}: {counts} images of {height}x{width} {made.dtype}{lacks}"


def create(args: argparse.Namespace) -> NXtomoFile:
    """Make the file. Raise `ConfigError`, `FileLayoutError`, `OutputExistsError`."""
    from stddaq.cli.nexus import layers_of, output_of
    from stddaq.files.application_metadata import merge
    from stddaq.files.names import find_run, nxtomo_file_name
    from stddaq.files.nxtomo import ImageKey, TomographyRun, create_nxtomo_file
    from stddaq.files.reading import open_run
    from stddaq.files.run import read_run

    if args.documents is not None:
        return _create_by_documents(args)
    kinds = [_kind_of(argument) for argument in args.runs]
    opened = [open_run(path, args.prefix) for _, path in kinds]
    runs = [read_run([raw.path for raw in run.raw_files]) for run in opened]
    keys = _keys(runs, [kind for kind, _ in kinds], args.keys)
    n_projections = sum(int(np.count_nonzero(of_run == ImageKey.projection)) for of_run in keys)
    angles = _angles(args.angles, n_projections)
    parts: list[TomographyRun] = []
    for run, of_run in zip(runs, keys, strict=True):
        # Darks and flats have an angle, too, which readers ignore.
        of_images = np.zeros(len(of_run))
        is_projection = of_run == ImageKey.projection
        n = int(np.count_nonzero(is_projection))
        of_images[is_projection], angles = angles[:n], angles[n:]
        parts.append(TomographyRun(run, of_run, of_images))
    main = next(
        (run for run, of_run in zip(opened, keys, strict=True) if ImageKey.projection in of_run), opened[-1]
    )
    files = find_run(main.raw_files[0].path, args.prefix)
    path = output_of(args, files.directory / nxtomo_file_name(files.prefix))
    return create_nxtomo_file(
        path, parts, merge(layers_of(args, main)), incomplete=args.incomplete, overwrite=args.overwrite
    )


def _create_by_documents(args: argparse.Namespace) -> NXtomoFile:
    from stddaq.cli.nexus import layers_of, output_of
    from stddaq.files.application_metadata import merge
    from stddaq.files.nxtomo import create_nxtomo_file
    from stddaq.files.reading import open_run
    from stddaq.files.scanned_runs import path_of_scan, run_with_projections

    if len(args.runs) > 1 or args.keys or args.angles:
        raise ConfigError(mismatch("--documents", "one run", "several, --keys or --angles"))
    runs = _scan_of(Path(args.documents), args.runs[0], args.prefix)
    return create_nxtomo_file(
        output_of(args, path_of_scan(runs)),
        [run.part for run in runs],
        merge(layers_of(args, open_run(run_with_projections(runs).files.raw[0]))),
        incomplete=args.incomplete,
        overwrite=args.overwrite,
    )


def _scan_of(documents: Path, run: str, prefix: str | None) -> list[ScannedRun]:
    """Return the runs of the only scan that has images of `run`, whose files are where those of `run` are."""
    from stddaq.files.names import find_run
    from stddaq.files.reading import open_run
    from stddaq.files.scan_documents import read_scans
    from stddaq.files.scanned_runs import runs_of_scan

    files = find_run(open_run(run, prefix).raw_files[0].path)
    found: list[list[ScannedRun]] = []
    problem: FileLayoutError | None = None
    for scan in read_scans(documents):
        try:
            of_detectors = scan.images()
        except FileLayoutError as error:
            # Other scans are in the file, too, which may be of other kinds.
            problem = FileLayoutError(f"{documents}: {error}")
            continue
        for scanned in of_detectors.values():
            if all((files.directory / images.path.name).exists() for images in scanned):
                runs = runs_of_scan(scanned, files.directory)
                found += [runs] if any(one.files.raw == files.raw for one in runs) else []
    if len(found) == 1:
        return found[0]
    if problem is not None and not found:
        raise problem
    raise FileLayoutError(
        mismatch(str(documents), f"one tomography scan with images of {run}", f"{len(found)}")
    )


def _kind_of(argument: str) -> tuple[str | None, str]:
    """Return the kind and the path of KIND=RUN or RUN. Raise `ConfigError` without a path."""
    kind, equals, path = argument.partition("=")
    if not (equals and kind in KINDS):
        return None, argument
    if not path:
        raise ConfigError(mismatch(argument, f"{kind}=RUN", "no run"))
    return kind, path


def _keys(runs: Sequence[RecordedRun], kinds: Sequence[str | None], given: str | None) -> list[np.ndarray]:
    from stddaq.files.nxtomo import ImageKey

    if given is None:
        if None in kinds:
            expected = "KIND=RUN for each run, of the kinds projection, flat and dark, or --keys"
            raise ConfigError(mismatch("runs", expected, "a run without a kind"))
        return [
            np.full(run.order.n_images, ImageKey[str(kind)]) for run, kind in zip(runs, kinds, strict=True)
        ]
    if len(runs) > 1 or kinds[0] is not None:
        raise ConfigError(mismatch("--keys", "one run without a kind", f"{len(runs)} runs"))
    names, numbers = _numbered(given)
    if sum(numbers) != runs[0].order.n_images:
        expected = f"kinds of the {runs[0].order.n_images} images of the run"
        raise ConfigError(mismatch("--keys", expected, f"those of {sum(numbers)}"))
    return [np.repeat([ImageKey[name] for name in names], numbers)]


def _numbered(given: str) -> tuple[list[str], list[int]]:
    names, numbers = [], []
    for part in given.split(","):
        name, _, number = part.partition(":")
        # What a broken point left is invalid.
        if name not in (*KINDS, "invalid") or not number.isascii() or not number.isdigit():
            expected = "KIND:NUMBER,... such as dark:5,flat:7,projection:30"
            raise ConfigError(mismatch("--keys", expected, repr(given)))
        names.append(name)
        numbers.append(int(number))
    return names, numbers


def _angles(given: str | None, n: int) -> np.ndarray:
    """Return the angles (n,) of the projections."""
    if given is None:
        raise ConfigError(mismatch("--angles", "START:STOP in degrees, or FILE.npy", "none"))
    start, colon, stop = given.partition(":")
    if not given.endswith(".npy") and colon:
        try:
            ends = float(start), float(stop)
        except ValueError:
            ends = np.nan, np.nan
        if not np.isfinite(ends).all():
            raise ConfigError(mismatch("--angles", "START:STOP in degrees, or FILE.npy", repr(given)))
        if ends[0] == ends[1] and n > 1:
            raise ConfigError(
                mismatch("--angles", f"another STOP than START for {n} projections", repr(given))
            )
        return np.linspace(*ends, n, endpoint=False)
    try:
        found = np.load(given, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise FileLayoutError(f"{given}: cannot be read: {error.strerror or error}") from error
    except (ValueError, EOFError) as error:
        raise FileLayoutError(mismatch(given, "a file of numpy", "another file")) from error
    if not isinstance(found, np.ndarray) or found.shape != (n,) or found.dtype.kind not in "iuf":
        raise FileLayoutError(mismatch(given, f"the angles of {n} projections", "another array"))
    if not np.isfinite(found).all():
        raise FileLayoutError(mismatch(given, "finite angles", "others"))
    return found.astype(np.float64)
