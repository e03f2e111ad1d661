"""Check a recorded run, for `stddaq validate`: its files, their order, the account, and every image.

HDF5 may crash over a damaged file or read it without end, so each file, and each block of pixels, is checked
by a fork of its own, which has a timeout and whose memory does not grow with the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import h5py
import numpy as np

from stddaq.errors import FileLayoutError
from stddaq.files.id_ranges import NO_IDS, IdRanges, id_ranges, skipped_ids
from stddaq.files.info import why_unclosed
from stddaq.files.names import RunFiles, find_run
from stddaq.files.nexus import DATA, account_of
from stddaq.files.opened_run import files_of_master, is_master_file, run_of_master
from stddaq.files.opening import examine, isolated
from stddaq.files.raw_pixels import RawPixels
from stddaq.files.raw_rows import RawRows, raw_file_of, read_raw_file
from stddaq.files.run import read_run
from stddaq.files.sources import check_sources
from stddaq.files.validate_pixels import BlockResult, blocks, read_block
from stddaq.text import mismatch
from stddaq.wire.std_daq import image_metadata_pb2 as pb

About = Literal["file", "order", "metadata", "master", "account", "images", "pixels", "checksums"]
# Called with "reading", and the numbers of images that were read, and that will be.
OnProgress = Callable[[str, int, int], None]
T = TypeVar("T")

SHOWN_RANGES = 10


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem of a run.

    Attributes:
        about: what is wrong: a "file", the "order" of the images, the "metadata" file, what the "master" file
            shows, the "account", the status of "images", their "pixels", or their "checksums".
        path: the file, or the run.
        text: the problem in one line that opens with the path.
    """

    about: About
    path: Path
    text: str


@dataclass(frozen=True, slots=True)
class RunReport:
    """The result of `validate_run`. Damaged, overwritten, skipped and unreadable images are listed by id.

    Attributes:
        path: what was to be checked.
        raw_files: those of the run, also if they do not exist.
        n_images: in all raw files whose rows can be read.
        damaged: images that the source marked.
        overwritten: images without pixels, whose status is overwritten or failed.
        skipped: ids without an image; no problem in itself, because filters skip ids on purpose.
        unreadable: images whose pixels are not stored or, if pixels were read, cannot be decoded.
        pixels_read: all pixels were read.
        n_compared: images whose pixels were compared with the checksum of their source.
        differing: those of them whose pixels are others.
    """

    path: Path
    raw_files: tuple[Path, ...]
    run_id: str | None = None
    n_images: int = 0
    n_good: int = 0
    first_id: int | None = None
    last_id: int | None = None
    damaged: IdRanges = NO_IDS
    overwritten: IdRanges = NO_IDS
    skipped: IdRanges = NO_IDS
    unreadable: IdRanges = NO_IDS
    pixels_read: bool = False
    n_compared: int = 0
    differing: IdRanges = NO_IDS
    problems: tuple[Problem, ...] = ()

    @property
    def exit_code(self) -> int:
        """Return 0 without problems, otherwise 1."""
        return 1 if self.problems else 0

    def lines(self) -> list[str]:
        """Return the report as lines of text."""
        between = "" if self.first_id is None else f", ids {self.first_id} to {self.last_id}"
        counts = {
            "damaged": self.damaged,
            "overwritten or failed": self.overwritten,
            "skipped": self.skipped,
            "not readable": self.unreadable,
            "not as the source sent": self.differing,
        }
        lines = [
            f"{self.path}: {self.n_images} images in {len(self.raw_files)} raw files{between}",
            f"  {'good':<24}{self.n_good}",
            *(
                f"  {kind:<24}{ids.number}: image ids {ids.shown(SHOWN_RANGES)}"
                for kind, ids in counts.items()
                if ids.number
            ),
            f"  {'pixels':<24}{'all read' if self.pixels_read else 'not read, --pixels reads them'}",
        ]
        if self.pixels_read:
            compared = f"of {self.n_compared} images compared" if self.n_compared else "none recorded"
            lines.append(f"  {'checksums':<24}{compared}")
        n = len(self.problems)
        lines += [f"problem: {problem.text}" for problem in self.problems]
        lines.append(f"{n or 'no'} problem{'' if n == 1 else 's'}")
        return lines


def validate_run(
    path: Path, prefix: str | None = None, *, pixels: bool = False, on_progress: OnProgress = lambda *_: None
) -> RunReport:
    """Check the run of a file, or of `prefix` in a directory; with `pixels`, read and decode every image.

    Images that have a checksum are read twice, past HDF5 and by HDF5, and compared with it.

    For programs without threads, because it forks. Raises `FileLayoutError` if there is no run, or none of
    its raw files can be read.
    """
    files = _files_of(path, prefix)
    parts: list[_Part] = []
    problems: list[Problem] = []
    for raw in files.raw:
        part = _attempt("file", raw, partial(_examine_raw_file, raw))
        if isinstance(part, _Part):
            parts.append(part)
            problems += part.problems
        else:
            problems.append(part)
    if not parts:
        others = f"; none of the {len(files.raw)} raw files can be read" if len(files.raw) > 1 else ""
        raise FileLayoutError(f"{problems[0].text}{others}")
    counts = isolated(partial(_count_images, [part.path for part in parts]), path)
    report = RunReport(path, files.raw, pixels_read=pixels, **counts)
    problems += _bad_images(report)
    if len(parts) == len(files.raw) and not any(part.unclosed for part in parts):
        skipped, found = _check_together(path, files)
        report = replace(report, skipped=skipped)
        problems += found
    return _check_pixels(replace(report, problems=tuple(problems)), parts, on_progress)


@dataclass(frozen=True, slots=True)
class _Part:
    """One raw file. `not_stored`: ids of images without pixels in the file, as bytes of uint64."""

    path: Path
    n_rows: int
    image_bytes: int
    unclosed: bool
    not_stored: bytes
    problems: tuple[Problem, ...]


def _attempt(about: About, path: Path, step: Callable[[], T]) -> T | Problem:
    """Return the result of `step`, carried out by a fork, or why `path` cannot be read."""
    try:
        return isolated(step, path)
    except FileLayoutError as error:
        return Problem(about, path, str(error))


def _files_of(path: Path, prefix: str | None) -> RunFiles:
    """Return the files of a run, by its master file or by their names."""
    if prefix is None and path.is_file():
        try:
            files = isolated(partial(_files_of_master, path), path)
        except FileLayoutError:
            files = None  # Reported when the master file is checked, if it is one.
        if files is not None:
            return files
    return find_run(path, prefix, allow_absent=True)


def _files_of_master(path: Path) -> RunFiles | None:
    if not is_master_file(path):
        return None
    raw, metadata = files_of_master(path)
    return RunFiles(path.parent, "", tuple(raw), metadata, path, path)


def _examine_raw_file(path: Path) -> _Part:
    with examine(path, allow_unclosed=True) as opened:
        rows, unclosed = raw_file_of(path, opened), why_unclosed(path, opened)
    problems = [Problem("file", path, f"{path}: was not closed: {unclosed}")] if unclosed else []
    if (text := _without_restart(rows)) is not None:
        problems.append(Problem("order", path, text))
    not_stored = rows.image_ids[RawPixels(rows).not_stored(np.arange(rows.n_rows))].tobytes()
    image_bytes = rows.image_shape[0] * rows.image_shape[1] * rows.dtype.itemsize
    return _Part(path, rows.n_rows, image_bytes, rows.unclosed, not_stored, tuple(problems))


def _without_restart(rows: RawRows) -> str | None:
    """Return what is wrong if ids step back in a closed file of stddaq, which lists such steps."""
    if rows.unclosed or rows.epochs_known or rows.origin.run_id is None or not rows.n_steps_back:
        return None
    row = int(np.flatnonzero(rows.epochs[1:] != rows.epochs[:-1])[0]) + 1
    before, found = rows.image_ids[row - 1 : row + 1].tolist()
    return mismatch(f"{rows.path}: row {row}", f"an image id above {before}, or a restart", f"image {found}")


def _count_images(paths: Sequence[Path]) -> dict[str, Any]:
    """Return fields of `RunReport` from the rows of the raw files that can be read."""
    files = [read_raw_file(path, allow_unclosed=True) for path in paths]
    ids = np.concatenate([file.image_ids for file in files])
    status = np.concatenate([file.status for file in files])
    good, overwritten = status == pb.good_image, status == pb.id_missmatch
    return {
        "run_id": next((file.origin.run_id for file in files if file.origin.run_id), None),
        "n_images": len(ids),
        "n_good": int(np.count_nonzero(good)),
        "first_id": int(ids.min()) if len(ids) else None,
        "last_id": int(ids.max()) if len(ids) else None,
        "damaged": id_ranges(ids[~good & ~overwritten]),
        "overwritten": id_ranges(ids[overwritten]),
    }


def _bad_images(report: RunReport) -> Iterator[Problem]:
    for kind, ids in (("damaged", report.damaged), ("overwritten or failed", report.overwritten)):
        if ids.number:
            got = f"{ids.number} {kind}, image ids {ids.shown(SHOWN_RANGES)}"
            yield Problem("images", report.path, mismatch(f"{report.path}: images", "good ones", got))


def _check_together(path: Path, files: RunFiles) -> tuple[IdRanges, Sequence[Problem]]:
    """Check what only all files together show. Return the skipped ids, and problems."""
    found = _attempt("order", path, partial(_examine_order, files))
    if isinstance(found, Problem):
        return NO_IDS, [found]
    skipped, problems = found
    if not files.master.exists():
        return skipped, problems
    about_master = _attempt("master", files.master, partial(_examine_master, files.master))
    return skipped, (*problems, *([about_master] if isinstance(about_master, Problem) else about_master))


def _examine_order(files: RunFiles) -> tuple[IdRanges, tuple[Problem, ...]]:
    if files.metadata is None:
        return skipped_ids(read_run(files.raw).order.image_ids), ()
    try:
        return skipped_ids(read_run(files.raw, files.metadata).order.image_ids), ()
    except FileLayoutError as error:
        problem = Problem("metadata", files.metadata, str(error))
        return skipped_ids(read_run(files.raw).order.image_ids), (problem,)


def _examine_master(path: Path) -> tuple[Problem, ...]:
    run = run_of_master(path)
    with examine(path) as opened:
        images = opened.file[DATA]
        assert isinstance(images, h5py.Dataset)
        check_sources(path, images)
        account = account_of(opened.file)
    if account is None:
        return ()
    n_good = sum(int(np.count_nonzero(raw.status == pb.good_image)) for raw in run.raw_files)
    numbers = {"count": run.order.n_images, "n_good": n_good}
    if run.order.n_epochs == 1:
        numbers["n_skipped"] = skipped_ids(run.order.image_ids).number
    return tuple(compare_account(path, account, numbers, run.run_id))


def compare_account(
    path: Path, account: Mapping[str, Any], numbers: Mapping[str, int], run_id: str | None = None
) -> Iterator[Problem]:
    """Yield what is wrong with an account in the file `path`, or with the run by it.

    `numbers` are those that the raw files give, by key; `run_id` is theirs, if the account has it.
    """
    return (Problem("account", path, text) for text in _compare(f"{path}: account", account, numbers, run_id))


def _compare(
    where: str, account: Mapping[str, Any], numbers: Mapping[str, int], run_id: str | None
) -> Iterator[str]:
    if account.get("outcome") != "file_saved":
        yield mismatch(where, "a run that was saved", f"{account.get('outcome')}: {account.get('reason')}")
    if account.get("n_dropped"):
        yield mismatch(where, "no dropped images", str(account["n_dropped"]))
    if run_id is not None and account.get("run_id") != run_id:
        yield mismatch(where, f"run_id {run_id} of the raw files", str(account.get("run_id")))
    if account.get("n_failed"):
        # Failed images may be in the files or not.
        numbers = {}
    for key, number in numbers.items():
        if account.get(key) != number:
            yield mismatch(f"{where}: {key}", f"{number} as in the raw files", str(account.get(key)))


def _check_pixels(report: RunReport, parts: Sequence[_Part], on_progress: OnProgress) -> RunReport:
    """Return the report with the images whose pixels are not stored, or all that reading them shows."""
    n_done, n_images = 0, sum(part.n_rows for part in parts)
    unreadable, differing, problems = [np.empty(0, np.uint64)], [np.empty(0, np.uint64)], []
    n_compared = 0
    for part in parts:
        found = BlockResult(part.not_stored)
        if report.pixels_read:
            found = BlockResult()
            for first, end in blocks(part.n_rows, part.image_bytes):
                found += read_block(part.path, first, end)
                n_done += end - first
                on_progress("reading", n_done, n_images)
        unreadable.append(np.frombuffer(found.unreadable, np.uint64))
        differing.append(np.frombuffer(found.differing, np.uint64))
        n_compared += found.n_compared
        if (ids := id_ranges(unreadable[-1])).number:
            text = _none_of(part, "pixels", "those of all {} images", ids, part.n_rows, found.reason)
            problems.append(Problem("pixels", part.path, text))
        if (ids := id_ranges(differing[-1])).number:
            expected = "those of the source for {} images"
            text = _none_of(part, "checksums", expected, ids, found.n_compared, found.where_differing)
            problems.append(Problem("checksums", part.path, text))
    return replace(
        report,
        unreadable=id_ranges(np.concatenate(unreadable)),
        n_compared=n_compared,
        differing=id_ranges(np.concatenate(differing)),
        problems=(*report.problems, *problems),
    )


def _none_of(part: _Part, what: str, expected: str, ids: IdRanges, of: int, reason: str) -> str:
    got = f"none of {ids.number}, image ids {ids.shown(SHOWN_RANGES)}" + (f" ({reason})" if reason else "")
    return mismatch(f"{part.path}: {what}", expected.format(of), got)
