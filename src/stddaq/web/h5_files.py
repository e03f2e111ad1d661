"""Runs the requests for HDF5 files: each in a process of its own, few at a time, with a time limit."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stddaq.daemon.log import logger
from stddaq.web.errors import HttpRefusalError

AT_A_TIME = 4
MAX_WAITING = 32
END_TIMEOUT_S = 0.5


class H5Files:
    """HDF5 files below the directories `roots`; a request takes `timeout` seconds at most."""

    def __init__(self, roots: Sequence[Path], timeout: float) -> None:
        self._roots, self._timeout = [str(root.absolute()) for root in roots], timeout
        self._turns = asyncio.Semaphore(AT_A_TIME)
        self._n_waiting = 0

    async def request(self, name: str, **arguments: Any) -> dict[str, Any]:
        """Carry out a request of `h5_requests`. Raises `HttpRefusalError`, also when it takes too long."""
        if self._n_waiting >= MAX_WAITING:
            raise HttpRefusalError(503, f"{MAX_WAITING} requests for files are waiting already; try later")
        self._n_waiting += 1
        try:
            async with asyncio.timeout(self._timeout), self._turns:
                return await self._in_process({"roots": self._roots, "request": name, "arguments": arguments})
        except TimeoutError as error:
            raise HttpRefusalError(
                504, f"the file system did not answer within {self._timeout:g} s"
            ) from error
        finally:
            self._n_waiting -= 1

    async def _in_process(self, asked: dict[str, Any]) -> dict[str, Any]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "stddaq.web.h5_process", stdin=PIPE, stdout=PIPE, stderr=PIPE
        )
        try:
            output, complaint = await process.communicate(json.dumps(asked).encode())
        finally:
            await _end(process)
        if process.returncode != 0:
            # HDF5 itself crashed, or a defect of ours; either way the file is the cause.
            logger.error(
                "%s ended with %s: %s", asked["request"], process.returncode, complaint.decode()[-2000:]
            )
            raise HttpRefusalError(422, "the file made the process that reads it crash; it is damaged")
        answer = json.loads(output)
        if "status" in answer:
            raise HttpRefusalError(answer["status"], answer["detail"])
        return answer["result"]


async def _end(process: Process) -> None:
    """End a process that still runs; one that a file system holds is left to end when that answers."""
    for end in (process.terminate, process.kill):
        if process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError, TimeoutError):
            end()
            await asyncio.wait_for(process.wait(), END_TIMEOUT_S)
