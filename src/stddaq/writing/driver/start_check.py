"""The checks of a start command, before anything is created."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stddaq.config import DetectorConfig
from stddaq.daemon.isolation import run_in_process
from stddaq.daemon.user_switch import may_create_files
from stddaq.errors import StdDaqError
from stddaq.files.names import (
    files_over_raw_files,
    master_file_name,
    metadata_file_name,
    nxmx_file_name,
    nxtomo_file_name,
    raw_file_name,
)
from stddaq.text import bytes_text, mismatch, os_error_text
from stddaq.wire.driver_messages import (
    CommandError,
    StartCommand,
)
from stddaq.wire.run_defaults import DEFAULT_N_IMAGE
from stddaq.writing.driver.old_files import file_of_other_run

ACCESS_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class PlannedFiles:
    """The files that one run will create; the NXmx file only if its metadata are known."""

    raw: tuple[Path, ...]
    metadata: Path | None
    master: Path
    nxmx: Path

    @classmethod
    def of(cls, start: StartCommand, number_of_writers: int, with_metadata: bool) -> PlannedFiles:
        """Return the files of the run that `start` asks for."""
        directory, prefix = Path(start.path), start.file_prefix
        return cls(
            tuple(directory / raw_file_name(prefix, i) for i in range(number_of_writers)),
            directory / metadata_file_name(prefix) if with_metadata else None,
            directory / master_file_name(prefix),
            directory / nxmx_file_name(prefix),
        )

    @property
    def all(self) -> tuple[Path, ...]:
        """All files, the master file last."""
        return (*self.raw, *([self.metadata] if self.metadata else []), self.master)

    def as_json(self) -> dict[str, object]:
        """Return the paths as strings, for messages."""
        return {
            "raw": [str(path) for path in self.raw],
            "metadata": str(self.metadata) if self.metadata else None,
            "master": str(self.master),
        }


def check_start(
    start: StartCommand,
    files: PlannedFiles,
    config: DetectorConfig,
    roots: Sequence[Path],
    *,
    compressed: bool,
) -> list[Path]:
    """Raise `CommandError` when the run cannot be written. Changes nothing on disk.

    Return the files of an old run that must be removed before its raw files are replaced.

    Files may be written below `roots` only, or anywhere if there are none. The check may take long on a slow
    file system.
    """
    _check_user(start, config)
    _check_directory(start, roots)
    old_files: list[Path] = []
    if start.overwrite:
        _check_no_file_of_other_run(start, files)
        old_files = _old_files(start)
    else:
        _check_no_file_exists(start, files)
    if not compressed and start.n_image != DEFAULT_N_IMAGE:
        _check_space(start, config)
    return old_files


def _old_files(start: StartCommand) -> list[Path]:
    try:
        return files_over_raw_files(Path(start.path), start.file_prefix)
    except OSError as error:
        raise CommandError("path_not_usable", f"path: {os_error_text(error)}") from error


def _check_no_file_of_other_run(start: StartCommand, files: PlannedFiles) -> None:
    """Refuse `scan1`, whose raw files are `scan10.h5` and so on, beside a run `scan` of 11 writers."""
    try:
        found = file_of_other_run(start.writer_id, files.raw, start.file_prefix, ACCESS_TIMEOUT_S)
    except (OSError, StdDaqError) as error:
        raise CommandError("path_not_usable", str(error)) from error
    if found:
        path, prefix = found
        expected = f"no raw file of another run than {start.file_prefix!r}"
        got = f"{path} of the run {prefix!r}"
        raise CommandError("file_exists", mismatch("path", expected, got, "choose another file_prefix"))


def _check_no_file_exists(start: StartCommand, files: PlannedFiles) -> None:
    # A metadata file of another run would be read as that of this run, even if this run has none; its NXmx
    # and NXtomo files would show the images of this run.
    metadata, nxtomo = (
        Path(start.path) / name(start.file_prefix) for name in (metadata_file_name, nxtomo_file_name)
    )
    of_runs = (*files.all, metadata, files.nxmx, nxtomo)
    existing = [str(path) for path in dict.fromkeys(of_runs) if os.path.lexists(path)]
    if existing:
        found = ", ".join(existing[:3]) + (", ..." if len(existing) > 3 else "")
        advice = 'choose another path or file_prefix, or set "overwrite": true'
        raise CommandError("file_exists", mismatch("path", "no file of this run", found, advice))


def _check_user(start: StartCommand, config: DetectorConfig) -> None:
    if start.writer_id not in (0, os.geteuid()) and not config.switch_user_active:
        advice = "the configuration sets switch_user_active to false"
        raise CommandError("user_not_allowed", mismatch("writer_id", "0", str(start.writer_id), advice))


def _check_directory(start: StartCommand, roots: Sequence[Path]) -> None:
    try:
        resolved = Path(start.path).resolve()
        allowed = [root.resolve() for root in roots]
        is_directory = resolved.is_dir()
    except (OSError, RuntimeError) as error:
        raise CommandError("path_not_usable", f"path: {start.path} cannot be resolved: {error}") from error
    if allowed and not any(resolved.is_relative_to(root) for root in allowed):
        expected = f"a directory below {', '.join(map(str, allowed))}"
        raise CommandError("path_not_allowed", mismatch("path", expected, start.path))
    if not is_directory:
        found = "is not a directory" if resolved.exists() else "does not exist"
        got = f"{start.path}, which {found}"
        raise CommandError("path_not_usable", mismatch("path", "an existing directory", got))
    if not _may_write(start.path, start.writer_id):
        expected = f"a directory that uid {start.writer_id or os.geteuid()} may write to"
        raise CommandError("path_not_usable", mismatch("path", expected, start.path))


def _may_write(path: str, uid: int) -> bool:
    """Return whether `uid` may create files in `path`, as far as this process can know."""
    if uid in (0, os.geteuid()):
        return may_create_files(path)
    if os.geteuid() != 0:
        # Only the writers, which run as root in this case, can know. They refuse before they create files.
        return True
    # Only the kernel knows the groups and access lists of a network file system, and switching the user in
    # this process would affect all its threads.
    where = f"path: check of {path} as uid {uid}"
    try:
        return run_in_process(functools.partial(may_create_files, path), ACCESS_TIMEOUT_S, where, uid=uid)
    except (OSError, StdDaqError) as error:
        raise CommandError("path_not_usable", str(error)) from error


def _check_space(start: StartCommand, config: DetectorConfig) -> None:
    needed, free = start.n_image * config.image_bytes, free_bytes(start)
    if needed > free:
        expected = f"images that fit into {bytes_text(free)} free in {start.path}"
        got = f"{start.n_image} of {bytes_text(config.image_bytes)} each, {bytes_text(needed)} in total"
        raise CommandError("disk_full", mismatch("n_image", expected, got))


def free_bytes(start: StartCommand) -> int:
    """Return what the user of a run may still write in its directory. Raise `CommandError`."""
    try:
        space = os.statvfs(start.path)
    except OSError as error:
        raise CommandError("path_not_usable", f"path: {start.path}: {error.strerror}") from error
    return (space.f_bavail if start.writer_id else space.f_bfree) * space.f_frsize
