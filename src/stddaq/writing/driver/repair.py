"""`stddaq repair` on behalf of the driver, for the files of its last run.

In a process of its own: it acts as the user that the files belong to, needs HDF5, and may hang on a file
system, none of which the driver itself may do.
"""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from stddaq.daemon.user_switch import UserSwitch
from stddaq.errors import StdDaqError


def repair_as(
    uid: int, paths: Sequence[Path], *, switch_user_active: bool, within: float
) -> list[dict[str, Any]]:
    """Repair files as `uid` (0: as this service).

    Returns for each `path`, `n_images`, `n_cut`, `repaired` (see `RepairResult`), and as `reason` why the
    file could not be repaired, or None. Blocks for up to `within` seconds;
    raises `TimeoutError` then, `OSError` when the process ended without an answer.
    """
    context = multiprocessing.get_context("spawn")
    answer, told = context.Pipe(duplex=False)
    process = context.Process(target=_repair, args=(told, uid, switch_user_active, paths), daemon=True)
    with answer:
        with told:
            process.start()
        try:
            if not answer.poll(within):
                raise TimeoutError(f"the file system did not answer within {within:g} s")
            return answer.recv()
        except EOFError as error:
            process.join(1.0)
            raise OSError(f"the process that repairs ended with {process.exitcode}") from error
        finally:
            process.kill()
            process.join(1.0)


def _repair(told: Connection, uid: int, switch_user_active: bool, paths: Sequence[Path]) -> None:
    # Imported before the switch, for that user need not be able to read our installation.
    from stddaq.files.repair import repair, writers_of

    # Only the service's own user may see that a writer which acts as another one has a file open.
    busy: dict[Path, list[int]] = {}
    for path in paths:
        with contextlib.suppress(OSError):
            busy[path] = writers_of(path)
    UserSwitch(switch_user_active).become(uid)
    results: list[dict[str, Any]] = []
    for path in paths:
        result: dict[str, Any] = {
            "path": str(path),
            "n_images": None,
            "n_cut": 0,
            "repaired": False,
            "reason": None,
        }
        try:
            if writers := busy.get(path):
                raise StdDaqError(f"{path}: is being written by process {', '.join(map(str, writers))}")
            done = repair(path)
            result |= {"n_images": done.n_images, "n_cut": done.n_cut, "repaired": done.repaired}
        except (OSError, RuntimeError, StdDaqError) as error:
            result["reason"] = str(error)
        results.append(result)
    told.send(results)
