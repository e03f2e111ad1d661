"""The files of an old run that an overwriting run replaces, and those to remove first.

The new raw files have the names of the old ones, so a master file of the old run would show their images.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path

from stddaq.daemon.isolation import run_in_process, run_in_process_async
from stddaq.daemon.user_switch import UserSwitch, drop_rights
from stddaq.files.names import is_ambiguous
from stddaq.open_directory import OpenDirectory


def file_of_other_run(
    uid: int, paths: Sequence[Path], prefix: str, timeout: float
) -> tuple[Path, str] | None:
    """Return the first of the raw files `paths` that belongs to a run of another prefix, and that prefix.

    HDF5 is loaded in another process, which acts as `uid`. Raises `StdDaqError`, `OSError`.
    """
    unsure = [path for path in paths if is_ambiguous(path) and os.path.lexists(path)]
    if not unsure:
        return None
    function = functools.partial(_file_of_other_prefix, uid if os.geteuid() == 0 else 0, unsure, prefix)
    return run_in_process(function, timeout, f"path: check of {unsure[0]}")


def _file_of_other_prefix(uid: int, paths: Sequence[Path], prefix: str) -> tuple[Path, str] | None:
    # Imported here to keep HDF5 out of the driver, and before the switch because `uid` may be unable to read
    # the installation.
    from stddaq.files.ownership import file_of_other_prefix

    if uid:
        drop_rights(uid)
    return file_of_other_prefix(paths, prefix)


async def remove_as(
    uid: int, paths: Sequence[Path], *, switch_user_active: bool, roots: Sequence[Path], timeout: float
) -> None:
    """Remove `paths` below `roots` as `uid` (0: as this service). Raises `StdDaqError`, `OSError`."""
    UserSwitch(switch_user_active).check(uid)
    function = functools.partial(_remove, list(paths), [root.absolute() for root in roots])
    await run_in_process_async(function, timeout, "removal of the old run's files", uid=uid)


def _remove(paths: Sequence[Path], roots: Sequence[Path]) -> None:
    for path in paths:
        with OpenDirectory(path.parent, roots=roots) as directory:
            directory.remove(path.name)
