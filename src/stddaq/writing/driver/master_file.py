"""The master file of a run whose writers are all C++ ones, created by a separate process.

It must belong to the user of the raw files. The driver itself never switches its user and loads no HDF5.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from stddaq.daemon.isolation import run_in_process_async
from stddaq.daemon.user_switch import UserSwitch, drop_rights
from stddaq.wire.std_daq import writer_action_pb2 as pb


async def create_in_own_process(
    create: pb.CreateMasterFile,
    uid: int,
    *,
    switch_user_active: bool,
    roots: Sequence[Path],
    timeout: float,
) -> None:
    """Create the master file below `roots` as `uid` (0: as this service). Raise `StdDaqError`, `OSError`."""
    UserSwitch(switch_user_active).check(uid)
    function = functools.partial(
        _create, create.SerializeToString(), uid, [root.absolute() for root in roots]
    )
    await run_in_process_async(function, timeout, create.path)


def _create(create: bytes, uid: int, roots: Sequence[Path]) -> None:
    # Imported here to keep HDF5 out of the driver, and before the switch because `uid` may be unable to read
    # the installation.
    from stddaq.writing.master_request import create_as_requested, load_libraries

    request = pb.CreateMasterFile.FromString(create)
    load_libraries(request)
    if uid:
        drop_rights(uid)
    create_as_requested(request, roots)
