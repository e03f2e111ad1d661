"""The status of the driver, received once for all that follow it.

Browsers cannot send commands through it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

from stddaq.client.async_driver import AsyncDriverClient
from stddaq.client.errors import DriverError
from stddaq.client.status import DriverStatus, StatusQueue
from stddaq.daemon.tasks import start_lasting_task

RECONNECT_PERIOD_S = 1.0
# Browsers receive the counts five times a second, and every state.
PERIOD_S = 0.2
UNREACHABLE = "unreachable"


class Watcher:
    """One view of the driver's status."""

    def __init__(self) -> None:
        self._statuses, self._arrived = StatusQueue(), asyncio.Event()

    def put(self, status: DriverStatus) -> None:
        """Note a status."""
        self._statuses.put(status)
        self._arrived.set()

    async def statuses(self) -> AsyncIterator[DriverStatus]:
        """Yield every state; of the statuses of one state the newest, at most five times a second."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while len(self._statuses):
                yield self._statuses.get()
            await asyncio.sleep(PERIOD_S)


class DriverFeed:
    """One connection to the driver at `url`."""

    def __init__(self, url: str, token: str | None = None) -> None:
        self._url, self._token = url, token
        self._watchers: set[Watcher] = set()
        self._task: asyncio.Task[None] | None = None
        self._latest: DriverStatus | None = None

    def client(self) -> AsyncDriverClient:
        """Return a further connection to the driver, for commands."""
        return AsyncDriverClient(self._url, token=self._token)

    @contextmanager
    def watching(self) -> Iterator[Watcher]:
        """Return a watcher, which first gets the latest status."""
        watcher = Watcher()
        if self._latest is not None:
            watcher.put(self._latest)
        self._watchers.add(watcher)
        if self._task is None:
            self._task = start_lasting_task(self._follow())
        try:
            yield watcher
        finally:
            self._watchers.discard(watcher)
            if not self._watchers:
                self._task.cancel()
                self._task = self._latest = None

    async def _follow(self) -> None:
        while True:
            with contextlib.suppress(asyncio.TimeoutError):
                try:
                    async with self.client() as driver:
                        async for status in driver.watch():
                            self._put(status)
                except (DriverError, OSError) as error:
                    raw = {"status": UNREACHABLE, "reason": str(error)}
                    self._put(DriverStatus(UNREACHABLE, reason=str(error), raw=raw))
            await asyncio.sleep(RECONNECT_PERIOD_S)

    def _put(self, status: DriverStatus) -> None:
        self._latest = status
        for watcher in self._watchers:
            watcher.put(status)
