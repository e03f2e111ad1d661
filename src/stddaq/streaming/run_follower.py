"""The driver's statuses for a service without asyncio: a thread receives them, and wakes the service."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections import deque
from collections.abc import Iterator

from stddaq.client.async_driver import AsyncDriverClient
from stddaq.client.errors import DriverError
from stddaq.client.status import DriverStatus
from stddaq.daemon import log

RETRY_PERIOD_S = 0.5
CLOSE_TIMEOUT_S = 5.0


class RunFollower:
    """Follows the driver at a url, and connects again when it was restarted."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._statuses: deque[DriverStatus | None] = deque()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._loop = asyncio.new_event_loop()
        self._task = self._loop.create_task(self._follow())
        self._thread = threading.Thread(target=self._run, name="driver", daemon=True)
        self._thread.start()

    def fileno(self) -> int:
        """Return a descriptor that is readable when there are statuses."""
        return self._wake

    def statuses(self) -> Iterator[DriverStatus | None]:
        """Yield what was received since the last call; None: the connection was lost."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        while self._statuses:
            yield self._statuses.popleft()

    def close(self) -> None:
        """Disconnect."""
        with contextlib.suppress(RuntimeError):  # The thread has failed, and its loop is closed.
            self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(CLOSE_TIMEOUT_S)
        if not self._thread.is_alive():  # It wakes the service; the process ends without it.
            os.close(self._wake)

    def _run(self) -> None:
        with contextlib.closing(self._loop), contextlib.suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._task)

    async def _follow(self) -> None:
        last_problem = ""
        while True:
            try:
                async with AsyncDriverClient(self._url) as driver:
                    async for status in driver.watch():
                        last_problem = ""
                        self._put(status)
            except DriverError as error:
                if str(error) != last_problem:
                    log.logger.warning("no runs are followed: %s", error)
                    last_problem = str(error)
            self._put(None)
            await asyncio.sleep(RETRY_PERIOD_S)

    def _put(self, status: DriverStatus | None) -> None:
        self._statuses.append(status)
        os.eventfd_write(self._wake, 1)
