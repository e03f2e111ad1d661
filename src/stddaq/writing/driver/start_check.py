"""What is checked before a run may start, and before anything of it is created."""

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
from stddaq.files.names import master_file_name, metadata_file_name, raw_file_name
from stddaq.wire.driver_messages import (
    DEFAULT_N_IMAGE,
    CommandError,
    StartCommand,
)

ACCESS_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class PlannedFiles:
    """The files that one run will make."""

    raw: tuple[Path, ...]
    metadata: Path | None
    master: Path

    @classmethod
    def of(cls, start: StartCommand, number_of_writers: int, with_metadata: bool) -> PlannedFiles:
        """The files of a run as asked for."""
        directory, prefix = Path(start.path), start.file_prefix
        return cls(
            tuple(directory / raw_file_name(prefix, i) for i in range(number_of_writers)),
            directory / metadata_file_name(prefix) if with_metadata else None,
            directory / master_file_name(prefix),
        )

    @property
    def all(self) -> tuple[Path, ...]:
        """Every file."""
        return (*self.raw, *([self.metadata] if self.metadata else []), self.master)

    def as_json(self) -> dict[str, object]:
        """For messages: paths as strings."""
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
) -> None:
    """Raise `CommandError`, with the reason, when the run cannot be written. Touches nothing.

    `roots` are the directories below which files may be written; empty: anywhere. May take long on a slow
    file system.
    """
    _check_user(start, config)
    _check_directory(start, roots)
    if not start.overwrite:
        existing = [path for path in files.all if os.path.lexists(path)]
        if existing:
            raise CommandError(
                "file_exists",
                f"found existing {', '.join(map(str, existing[:3]))}{' ...' if len(existing) > 3 else ''}; "
                'choose another file_prefix or path, or say "overwrite": true',
            )
    if not compressed and start.n_image != DEFAULT_N_IMAGE:
        _check_space(start, config)


def _check_user(start: StartCommand, config: DetectorConfig) -> None:
    if start.writer_id not in (0, os.geteuid()) and not config.switch_user_active:
        raise CommandError(
            "user_not_allowed",
            f"writer_id: found {start.writer_id}, but switch_user_active is false in the configuration; "
            "allowed is 0",
        )


def _check_directory(start: StartCommand, roots: Sequence[Path]) -> None:
    try:
        resolved = Path(start.path).resolve()
        allowed = [root.resolve() for root in roots]
        is_directory = resolved.is_dir()
    except (OSError, RuntimeError) as error:
        raise CommandError("path_not_usable", f"path: {start.path} cannot be resolved: {error}") from error
    if allowed and not any(resolved.is_relative_to(root) for root in allowed):
        raise CommandError(
            "path_not_allowed",
            f"path: found {start.path}, allowed are directories below {', '.join(map(str, allowed))}",
        )
    if not is_directory:
        found = "is not a directory" if resolved.exists() else "does not exist"
        raise CommandError("path_not_usable", f"path: {start.path} {found}; allowed is an existing directory")
    if not _may_write(start.path, start.writer_id):
        uid = start.writer_id or os.geteuid()
        raise CommandError("path_not_usable", f"path: uid {uid} may not write to {start.path}")


def _may_write(path: str, uid: int) -> bool:
    """Return whether `uid` may create files in `path`, as far as this process can know."""
    if uid in (0, os.geteuid()):
        return may_create_files(path)
    if os.geteuid() != 0:
        return True  # Only the writers, which run as root then, can know. They refuse before they create.
    # Only the kernel knows the groups and access lists of a network file system, and switching the user in
    # this process would affect all its threads.
    where = f"path: check of {path} as uid {uid}"
    try:
        return run_in_process(functools.partial(may_create_files, path), ACCESS_TIMEOUT_S, where, uid=uid)
    except (OSError, StdDaqError) as error:
        raise CommandError("path_not_usable", str(error)) from error


def _check_space(start: StartCommand, config: DetectorConfig) -> None:
    needed = start.n_image * config.image_bytes
    try:
        space = os.statvfs(start.path)
    except OSError as error:
        raise CommandError("path_not_usable", f"path: {start.path}: {error.strerror}") from error
    free = (space.f_bavail if start.writer_id else space.f_bfree) * space.f_frsize
    if needed > free:
        raise CommandError(
            "disk_full",
            f"n_image: {start.n_image} images of {config.image_bytes} bytes need {needed} bytes, "
            f"{start.path} has {free} bytes free",
        )
