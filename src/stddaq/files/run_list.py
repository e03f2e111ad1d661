"""The runs in a directory, for `stddaq info DIRECTORY`: `list_runs` finds and summarises them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from stddaq.errors import FileLayoutError
from stddaq.files.file_info import FileInfo
from stddaq.files.info import describe
from stddaq.files.joined_runs import joined_master
from stddaq.files.names import RunFiles, files_of_prefix, find_run, prefixes_in
from stddaq.files.opening import isolated
from stddaq.text import bytes_text

BAD = ("damaged", "overwritten", "failed", "skipped", "incomplete")
COLUMNS = ("run", "images", "good", "bad", "started", "size", "outcome")


@dataclass(frozen=True, slots=True)
class RunSummary:
    """One run of a directory.

    Attributes:
        outcome: of the account, with the reason of an error; what is known of a run without account.
        started_at: ISO 8601 with a zone; None without account.
        n_images: recorded images; None if the files cannot be read.
        n_good: of those; None if it is not known.
        bad: number of images by kind: "damaged", "overwritten", "failed" and "skipped", and "incomplete" in a
            run of several drivers, if there are any.
        size: bytes of all its files.
    """

    prefix: str
    outcome: str
    started_at: str | None = None
    n_images: int | None = None
    n_good: int | None = None
    bad: dict[str, int] = field(default_factory=dict)
    size: int = 0

    def cells(self) -> tuple[str, ...]:
        """Return the texts of `COLUMNS`."""
        return (
            self.prefix or '""',
            "?" if self.n_images is None else str(self.n_images),
            "?" if self.n_good is None else str(self.n_good),
            ", ".join(f"{number} {kind}" for kind, number in self.bad.items()) or "-",
            # To the second.
            (self.started_at or "?")[:19].replace("T", " "),
            bytes_text(self.size),
            "saved" if self.outcome == "file_saved" else self.outcome,
        )


def list_runs(directory: Path) -> Iterator[RunSummary]:
    """Summarise the runs whose files are in `directory`, by name. Raise `OSError` if it cannot be listed."""
    for prefix in prefixes_in(directory):
        try:
            yield isolated(partial(_summarise, directory, prefix), directory / prefix)
        except FileLayoutError as error:
            yield RunSummary(prefix, str(error), size=_size_of_prefix(directory, prefix))


def _summarise(directory: Path, prefix: str) -> RunSummary:
    if (over_parts := joined_master(directory, prefix)) is not None:
        info = describe(over_parts)
        if info.account is not None:
            # The parts are listed as runs of their own.
            return _of_account(prefix, info, info.account, info.size)
    files = find_run(directory, prefix)
    size = sum(path.stat().st_size for path in _paths(files))
    if not files.master.exists():
        raw = [describe(path) for path in files.raw]
        if all(info.kind == "other" for info in raw):
            return RunSummary(prefix, "HDF5 files, not of a run", size=size)
        return _without_account(prefix, raw, "no master file", size)
    master = describe(files.master)
    problem = master.differs or (f"{master.missing[0]}: is missing" if master.missing else "")
    if problem or master.account is None:
        return _without_account(prefix, [master], problem or "no account", size)
    return _of_account(prefix, master, master.account, size)


def _of_account(prefix: str, master: FileInfo, account: dict[str, object], size: int) -> RunSummary:
    reason = f": {account['reason']}" if account.get("reason") else ""
    numbers = {kind: account.get(f"n_{kind}") for kind in BAD}
    started_at, n_good = account.get("started_at"), account.get("n_good")
    return RunSummary(
        prefix,
        f"{account.get('outcome', '?')}{reason}",
        started_at=str(started_at) if started_at else None,
        n_images=master.n_images,
        n_good=n_good if isinstance(n_good, int) else None,
        bad={kind: number for kind, number in numbers.items() if isinstance(number, int) and number},
        size=size,
    )


def _without_account(prefix: str, infos: list[FileInfo], outcome: str, size: int) -> RunSummary:
    unclosed = next((info.unclosed for info in infos if info.unclosed), None)
    status = [info.status for info in infos]
    known = [one for one in status if one is not None]
    numbers = {
        "damaged": sum(len(one.damaged) for one in known),
        "overwritten": sum(len(one.overwritten) for one in known),
        "skipped": sum(info.ids.n_skipped for info in infos if info.ids),
    }
    return RunSummary(
        prefix,
        f"{outcome}; {unclosed}" if unclosed else outcome,
        n_images=sum(info.n_images or 0 for info in infos),
        n_good=sum(one.n_good for one in known) if len(known) == len(status) else None,
        bad={kind: number for kind, number in numbers.items() if number},
        size=size,
    )


def _paths(files: RunFiles) -> Iterator[Path]:
    yield from files.raw
    if files.metadata:
        yield files.metadata
    if files.master.exists():
        yield files.master


def _size_of_prefix(directory: Path, prefix: str) -> int:
    return sum((directory / name).stat().st_size for name in files_of_prefix(directory, prefix))
