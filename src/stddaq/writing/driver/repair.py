"""`stddaq repair` on behalf of the driver, for the files that its last run left unclosed.

A separate process acts as the user of the files, loads HDF5, and may hang on a file system. The driver itself
must do none of these.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stddaq.daemon.isolation import run_in_process_async
from stddaq.daemon.user_switch import UserSwitch, drop_rights
from stddaq.errors import StdDaqError
from stddaq.open_directory import OpenDirectory
from stddaq.text import mismatch

# What `repair` calls a file that was opened before.
_PROC_PATH = re.compile(r"/proc/self/fd/\d+")


async def repair_as(
    uid: int, paths: Sequence[Path], *, switch_user_active: bool, roots: Sequence[Path], timeout: float
) -> list[dict[str, Any]]:
    """Repair files below `roots` as `uid` (0: as this service).

    Returns for each `path`, `n_images`, `n_cut`, `repaired` (see `RepairResult`), and as `reason` why the
    file could not be repaired, or None. Raises `TimeoutError`, and `OSError` or `StdDaqError` when the
    process failed.
    """
    UserSwitch(switch_user_active).check(uid)
    function = functools.partial(_repair_all, uid, list(paths), [root.absolute() for root in roots])
    return await run_in_process_async(function, timeout, "repair of the last run's files")


def _repair_all(uid: int, paths: Sequence[Path], roots: Sequence[Path]) -> list[dict[str, Any]]:
    # Imported here to keep HDF5 out of the driver, and before the switch because `uid` may be unable to read
    # the installation.
    from stddaq.files.repair import writers_of

    # Only the service's own user sees that a writer which acts as another user has a file open.
    busy: dict[Path, list[int]] = {}
    for path in paths:
        with contextlib.suppress(OSError):
            busy[path] = writers_of(path)
    if uid:
        drop_rights(uid)
    return [_repair_one(path, busy.get(path, []), roots) for path in paths]


def _repair_one(path: Path, writers: Sequence[int], roots: Sequence[Path]) -> dict[str, Any]:
    from stddaq.files.repair import repair

    result = {"path": str(path), "n_images": None, "n_cut": 0, "repaired": False, "reason": None}
    if writers:
        pids = ", ".join(map(str, writers))
        reason = mismatch(str(path), "a file that no process writes to", f"one written by process {pids}")
        return result | {"reason": reason}
    try:
        with OpenDirectory(path.parent, roots=roots) as directory, directory.opened(path.name) as opened:
            done = repair(opened)
    except (OSError, RuntimeError, StdDaqError) as error:
        return result | {"reason": _PROC_PATH.sub(lambda _: str(path), str(error))}
    return result | {"n_images": done.n_images, "n_cut": done.n_cut, "repaired": done.repaired}
