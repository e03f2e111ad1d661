"""Run the requests for HDF5 files: each in its own process, few at a time, with a timeout."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from stddaq.daemon.isolation import CrashError, run_in_process_async
from stddaq.daemon.log import logger
from stddaq.text import mismatch
from stddaq.web.errors import QueueFullError
from stddaq.web.h5_process import carry_out

MAX_RUNNING = 4
MAX_WAITING = 32
# A damaged file can ask for any amount of memory.
MEMORY_LIMIT = 2 * 2**30


class H5Files:
    """The HDF5 files below the directories `roots`. A request takes at most `timeout` seconds."""

    def __init__(self, roots: Sequence[Path], timeout: float) -> None:
        self.roots, self._timeout = tuple(root.absolute() for root in roots), timeout
        self._turns = asyncio.Semaphore(MAX_RUNNING)
        self._n_waiting = 0

    async def request(self, name: str, **arguments: Any) -> dict[str, Any]:
        """Run the request `name` of `h5_requests` and return its answer.

        Raise what the request raises, `QueueFullError`, `TimeoutError`, or `CrashError` for a file that
        crashes HDF5.
        """
        if self._n_waiting >= MAX_WAITING:
            raise QueueFullError(
                mismatch(name, f"at most {MAX_WAITING} waiting requests", "another one", "try again later")
            )
        self._n_waiting += 1
        try:
            async with asyncio.timeout(self._timeout), self._turns:
                return await self._in_process(name, arguments)
        except TimeoutError as error:
            raise TimeoutError(mismatch(name, f"an answer within {self._timeout:g} s", "none")) from error
        finally:
            self._n_waiting -= 1

    async def _in_process(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        request = partial(carry_out, [str(root) for root in self.roots], name, arguments)
        try:
            return await run_in_process_async(request, self._timeout, name, memory_limit=MEMORY_LIMIT)
        except CrashError as error:
            logger.error("%s %s: %s", name, ascii(arguments), error)
            raise
