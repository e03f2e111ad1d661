"""The statuses of a driver as an asynchronous iterator, whose reader may be slower than the driver."""

from __future__ import annotations

import asyncio

from stddaq.client.driver_protocol import DriverHistory, FollowedRun
from stddaq.client.errors import ConnectionLostError, DriverTimeoutError
from stddaq.client.status import DriverStatus


class StatusWatcher:
    """The async iterator that `AsyncDriverClient.watch` and `watch_run` return."""

    def __init__(
        self,
        history: DriverHistory,
        run: FollowedRun | None = None,
        timeout: float | None = None,
        url: str = "",
    ) -> None:
        self._history, self._timeout, self._url = history, timeout, url
        self._feed = history.feed(run)
        self._deadline = None if timeout is None else asyncio.get_running_loop().time() + timeout
        self._news = asyncio.Event()
        self._feed.notify = self._news.set

    def __aiter__(self) -> StatusWatcher:
        return self

    async def __anext__(self) -> DriverStatus:
        if self._feed.is_over:
            raise StopAsyncIteration
        # Statuses that come all the time do not put off the deadline.
        if self._deadline is not None and asyncio.get_running_loop().time() >= self._deadline:
            raise self._timeout_error()
        try:
            async with asyncio.timeout_at(self._deadline):
                await self._wait_for_status()
        except TimeoutError:
            raise self._timeout_error() from None
        return self._feed.get()

    async def _wait_for_status(self) -> None:
        while not len(self._feed):
            if self._feed.error is not None:
                raise ConnectionLostError(str(self._feed.error))
            self._news.clear()
            with self._history.kept(self._feed):
                await self._news.wait()

    def _timeout_error(self) -> DriverTimeoutError:
        return DriverTimeoutError(f"{self._url}: the run has not ended within {self._timeout:g} s")
