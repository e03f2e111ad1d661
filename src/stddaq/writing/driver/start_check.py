"""What is checked before a run may start, and before anything of it is created."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stddaq.config import DetectorConfig
from stddaq.daemon.user_switch import groups_of
from stddaq.files.names import master_file_name, metadata_file_name, raw_file_name
from stddaq.wire.driver_messages import (
    DEFAULT_N_IMAGE,
    CommandError,
    StartCommand,
)

ACCESS_TIMEOUT_S = 5.0
_WRITE_AND_SEARCH = os.W_OK | os.X_OK


@dataclass(frozen=True, slots=True)
class RunFiles:
    """The files that one run will make."""

    raw: tuple[Path, ...]
    metadata: Path | None
    master: Path

    @classmethod
    def of(cls, start: StartCommand, number_of_writers: int, with_metadata: bool) -> RunFiles:
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
    start: StartCommand, files: RunFiles, config: DetectorConfig, roots: Sequence[Path], *, compressed: bool
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
    """Whether `uid` may create files in `path`, asked of the system as that user where we can be it."""
    if uid in (0, os.geteuid()):
        return os.access(path, _WRITE_AND_SEARCH, effective_ids=True)
    if os.geteuid() != 0:
        return True  # Only the writers, which are root then, can know; they refuse before they create.
    # Groups and access lists of a network file system are known to the kernel alone, and becoming the user
    # in this process would do so for all its threads.
    try:
        return _access_as(uid, path)
    except (OSError, subprocess.SubprocessError) as error:
        raise CommandError(
            "path_not_usable", f"path: {path} cannot be checked as uid {uid}: {error}"
        ) from error


def _access_as(uid: int, path: str) -> bool:
    gid, groups = groups_of(uid)
    check = subprocess.run(
        ["/usr/bin/test", "-w", path, "-a", "-x", path],
        user=uid,
        group=gid,
        extra_groups=groups,
        cwd="/",
        timeout=ACCESS_TIMEOUT_S,
        check=False,
    )
    return check.returncode == 0


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
