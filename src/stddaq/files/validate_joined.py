"""Check a run of several drivers, for `stddaq validate`: each part as a run, and what joins them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from pathlib import Path

import numpy as np

from stddaq.errors import FileLayoutError
from stddaq.files.id_ranges import NO_IDS, IdRanges, id_ranges
from stddaq.files.joined_runs import joined_master, n_parts_of, part_of_master, verify_joined_master
from stddaq.files.nexus import account_of
from stddaq.files.opening import examine, isolated
from stddaq.files.run import read_run
from stddaq.files.validate_run import (
    SHOWN_RANGES,
    OnProgress,
    Problem,
    RunReport,
    compare_account,
    validate_run,
)
from stddaq.text import mismatch
from stddaq.wire.std_daq import image_metadata_pb2 as pb


@dataclass(frozen=True, slots=True)
class JoinedReport:
    """The result of `validate` for the master file of several drivers.

    Attributes:
        path: the master file.
        parts: those whose raw files can be read.
        n_images: that every part has, as the master file shows them.
        n_good: of those, the ones that are good in every part.
        incomplete: images that only some parts have. They are a problem between the first and the last image
            that all have; outside, drivers were started or stopped some images apart.
        problems: of the master file and of its account; those of the parts are in `parts`.
    """

    path: Path
    parts: tuple[RunReport, ...]
    n_images: int = 0
    n_good: int = 0
    incomplete: IdRanges = NO_IDS
    problems: tuple[Problem, ...] = ()

    @property
    def exit_code(self) -> int:
        """Return 0 without problems, also of the parts, otherwise 1."""
        return 1 if self.problems or any(part.exit_code for part in self.parts) else 0

    def lines(self) -> list[str]:
        """Return the report as lines of text."""
        n = sum(len(report.problems) for report in (self, *self.parts))
        lines = [
            f"{self.path}: {self.n_images} images of several drivers, {len(self.parts)} parts",
            f"  {'good in all parts':<24}{self.n_good}",
        ]
        if self.incomplete.number:
            shown = self.incomplete.shown(SHOWN_RANGES)
            lines.append(f"  {'only in some parts':<24}{self.incomplete.number}: image ids {shown}")
        lines += [f"problem: {problem.text}" for problem in self.problems]
        for part in self.parts:
            lines += part.lines()
        lines.append(f"{n or 'no'} problem{'' if n == 1 else 's'} in the run of all parts")
        return lines


def validate(
    path: Path, prefix: str | None = None, *, pixels: bool = False, on_progress: OnProgress = lambda *_: None
) -> RunReport | JoinedReport:
    """Check the run of a file, or of `prefix` in a directory, which one driver or several recorded.

    The arguments, and the errors, are those of `stddaq.files.validate_run.validate_run`.
    """
    try:
        master = isolated(partial(joined_master, path, prefix), path)
    except FileLayoutError:
        master = None  # HDF5 crashes over it, which the check of a run reports.
    if master is None:
        return validate_run(path, prefix, pixels=pixels, on_progress=on_progress)
    raw_files = isolated(partial(_raw_files_of_parts, master), master)
    parts: list[RunReport] = []
    problems: list[Problem] = []
    for number, raw in enumerate(raw_files, 1):
        try:
            parts.append(validate_run(raw[0], pixels=pixels, on_progress=on_progress))
        except FileLayoutError as error:
            problems.append(Problem("file", raw[0], f"part {number}: {error}"))
    report = JoinedReport(master, tuple(parts), problems=tuple(problems))
    try:
        return isolated(partial(_examine, report, raw_files), master)
    except FileLayoutError as error:
        problems.append(Problem("master", master, str(error)))
        return replace(report, problems=tuple(problems))


def _raw_files_of_parts(master: Path) -> list[list[Path]]:
    return [part_of_master(master, number).raw_files for number in range(1, n_parts_of(master) + 1)]


def _examine(report: JoinedReport, raw_files: Sequence[Sequence[Path]]) -> JoinedReport:
    """Return the report with what only all parts together show. Raise `FileLayoutError`."""
    master, runs, is_good = report.path, [], []
    for number, paths in enumerate(raw_files, 1):
        run, part = read_run(paths), part_of_master(master, number)
        rows = part.rows_of(run.raw_files[0], run.order.image_ids)
        status = run.in_order([raw.status for raw in run.raw_files])
        is_good.append(status[rows] == pb.good_image)
        runs.append(run)
    found = [run.order.image_ids for run in runs]
    complete, some = reduce(np.intersect1d, found), reduce(np.union1d, found)
    shown = part_of_master(master, 1).image_ids
    if not np.array_equal(shown, complete):
        got = f"{len(shown)} images"
        raise FileLayoutError(mismatch(str(master), f"the {len(complete)} images of all parts", got))
    verify_joined_master(master, runs, shown)
    n_good = int(np.count_nonzero(np.logical_and.reduce(is_good)))
    incomplete = np.setdiff1d(some, complete)
    with examine(master) as opened:
        account = account_of(opened.file)
    problems = [*report.problems, *_between(master, complete, incomplete)]
    if account is not None:
        numbers = {"count": len(complete), "n_good": n_good, "n_incomplete": len(incomplete)}
        problems += compare_account(master, account, numbers)
    return replace(
        report,
        n_images=len(complete),
        n_good=n_good,
        incomplete=id_ranges(incomplete),
        problems=tuple(problems),
    )


def _between(master: Path, complete: np.ndarray, incomplete: np.ndarray) -> Iterator[Problem]:
    if not len(complete):
        return
    between = id_ranges(incomplete[(incomplete > complete[0]) & (incomplete < complete[-1])])
    if between.number:
        expected = f"those from {complete[0]} to {complete[-1]} in every part"
        got = f"{between.number} only in some, image ids {between.shown(SHOWN_RANGES)}"
        yield Problem("images", master, mismatch(f"{master}: images", expected, got))
