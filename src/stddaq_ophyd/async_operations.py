"""What a plan waits for: it fails as soon as the recording does, and ends with a pause, or the plan."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterator
from typing import Any, TypeVar

from ophyd_async.core import WatcherUpdate

from stddaq_ophyd.core.errors import AcquisitionStoppedError
from stddaq_ophyd.core.recorder import Recorder, raise_failure

T = TypeVar("T")

# The failure of the recording says more than a timeout of ophyd-async at the same moment.
REASON_TIMEOUT_S = 1.0


class Operations:
    """The methods of a device that a plan has started, and that have not ended.

    Attributes:
        recorder: takes the images; None before the first driver run of a staging.
        are_ending: no images may be taken now.
    """

    def __init__(self) -> None:
        self.recorder: Recorder | None = None
        self.are_ending = False
        self._unfinished: set[asyncio.Future[Any]] = set()

    async def run(self, operation: Coroutine[Any, Any, T]) -> T:
        """Return the result of `operation`."""
        with self._unfinished_until_left(asyncio.ensure_future(operation)) as running:
            return await running

    async def end(self) -> None:
        """End all of them, quietly: the RunEngine would raise what their statuses say."""
        self.are_ending = True
        try:
            if self.recorder is not None:
                await self.recorder.end()
            # One may start another.
            while self._unfinished:
                await asyncio.wait(tuple(self._unfinished))
        finally:
            self.are_ending = False

    async def until_failure(
        self, updates: AsyncGenerator[WatcherUpdate[int], None]
    ) -> AsyncIterator[WatcherUpdate[int]]:
        """Yield `updates`. Raise the error of the recording at once; end quietly when that was stopped."""
        while True:
            with self._unfinished_until_left(asyncio.ensure_future(anext(updates, None))) as update:
                try:
                    found = await self._unless_failed(update)
                except AcquisitionStoppedError:
                    return
                finally:
                    update.cancel()
                    await asyncio.wait([update])
            if found is None:
                return
            yield found

    @contextlib.contextmanager
    def _unfinished_until_left(self, future: asyncio.Future[T]) -> Iterator[asyncio.Future[T]]:
        self._unfinished.add(future)
        try:
            yield future
        finally:
            self._unfinished.discard(future)

    async def _unless_failed(
        self, update: asyncio.Future[WatcherUpdate[int] | None]
    ) -> WatcherUpdate[int] | None:
        taking = self.recorder.task if self.recorder else None
        if taking is not None:
            await asyncio.wait([update, taking], return_when=asyncio.FIRST_COMPLETED)
            if not update.done():
                raise_failure(taking)
        try:
            return await update
        except TimeoutError:
            if taking is not None:
                await asyncio.wait([taking], timeout=REASON_TIMEOUT_S)
                if taking.done():
                    raise_failure(taking)
            raise
