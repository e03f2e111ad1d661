"""The master file of a run: made by a writer of ours or, where all are C++ ones, by a process of its own.

It has to belong to the user that the raw files belong to, and the driver itself never switches its user.
"""

from __future__ import annotations

import asyncio
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

from stddaq.daemon.user_switch import UserSwitch
from stddaq.wire.std_daq import writer_action_pb2 as pb


async def create_in_own_process(action: pb.CreateMasterFile, uid: int, *, switch_user_active: bool) -> None:
    """Make the master file as `uid` (0: as this service). Raises `StdDaqError`, `OSError`, `RuntimeError`."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(pool, _carry_out_as, uid, switch_user_active, action.SerializeToString())


def _carry_out_as(uid: int, switch_user_active: bool, action: bytes) -> None:
    # Imported late, for the driver needs no HDF5 as long as a writer does this for it; and before the switch,
    # for that user need not be able to read our installation.
    from stddaq.writing.master_request import create_as_asked

    UserSwitch(switch_user_active).become(uid)
    create_as_asked(pb.CreateMasterFile.FromString(action))
