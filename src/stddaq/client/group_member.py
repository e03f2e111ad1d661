"""One driver of a group, and its part of the run of the group."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stddaq.client.async_driver import RECONNECT_PERIOD_S, AsyncDriverClient
from stddaq.client.connection import CONNECT_TIMEOUT_S
from stddaq.client.errors import ConnectionLostError, DriverBusyError, DriverError, DriverTimeoutError
from stddaq.client.status import DriverStatus
from stddaq.errors import StdDaqError
from stddaq.joined_account import Part
from stddaq.wire.driver_messages import RUN_STATES

# Of the parts that did start when another one did not. A driver gives its writers 10 s to close their files.
STOP_TIMEOUT_S = 20.0
# A driver that is still lost so long after the end of the others stays lost. Its writers close their files
# after a second without it.
LOST_TIMEOUT_S = 5.0


class PartRun:
    """The part that one driver has in a run of the group.

    Attributes:
        is_asked: the driver was asked to start it.
        run_id: of the driver's own run; None before it has started.
        status: its latest status.
        is_connected: whether the driver is.
        is_stopped: the run of the group was stopped.
        reason: why the part is lost, as far as it is known now.
        part: how it ended; None before.
    """

    def __init__(self, number: int, url: str) -> None:
        self.number, self.url = number, url
        self.is_asked = False
        self.run_id: str | None = None
        self.status: DriverStatus | None = None
        self.is_connected, self.is_stopped = True, False
        self.reason = ""
        self.part: Part | None = None

    @property
    def state(self) -> str:
        """The state of the part: one of those of a run, but `saving_file` until its account is there."""
        state = self.status.status if self.status else "started"
        return state if state in RUN_STATES and state != "file_saved" else "saving_file"

    @property
    def is_going_on(self) -> bool:
        """Whether it has not ended, and its driver is connected."""
        return self.part is None and self.is_connected

    def end(self, account: dict[str, Any] | None) -> None:
        """Take the account of the part; None: it is lost."""
        if account is not None:
            self.part, self.reason = Part.of_account(self.number, self.url, account), ""
            return
        raw_files = self.status.files.get("raw", ()) if self.status else ()
        self.part = Part.lost(self.number, self.url, self.reason, raw_files, self.run_id)

    def as_json(self) -> dict[str, Any]:
        """Return what a status of the group says about the part."""
        return {
            "part": self.number,
            "url": self.url,
            "run_id": self.run_id,
            "status": self.status.status if self.status else None,
            "count": self.status.count if self.status else None,
            "n_received": self.status.n_received if self.status else None,
            "writers": self.status.raw.get("writers") if self.status else None,
            "reason": self.reason or None,
        }


class GroupMember:
    """One driver of a group.

    Attributes:
        client: of the driver.
        run: its part of the latest run of the group.
    """

    def __init__(
        self,
        number: int,
        url: str,
        token: str | None,
        publish: Callable[[], None],
        others_go_on: Callable[[], bool],
    ) -> None:
        """`number`: 1, 2, ... `publish` is called for each change; `others_go_on` returns whether a part of
        the run has not ended whose driver is connected."""
        self.number = number
        self.client = AsyncDriverClient(url, token=token)
        self.url = self.client.url
        self._publish, self._others_go_on = publish, others_go_on
        self._to_follow: asyncio.Queue[PartRun] = asyncio.Queue()
        self.run = PartRun(number, self.url)

    async def connect_again(self) -> None:
        """Connect if the connection was lost. Raise `DriverUnreachableError`, `DriverNotAllowedError`."""
        try:
            _ = self.client.latest
        except ConnectionLostError:
            await self.client.close()
            await self.client.connect()

    async def expect_idle(self, timeout: float) -> None:
        """Raise `DriverBusyError` during another run."""
        status = await self.client.status(timeout)
        if status.is_busy:
            raise DriverBusyError("busy", f"the driver is busy, it is {status.status}")

    async def start(self, path: str | Path, timeout: float, fields: dict[str, Any]) -> None:
        """Start the part, and follow it. Raise the errors of `AsyncDriverClient.start`."""
        run = self.run
        try:
            run.is_asked = True
            run.status = await self.client.start(path, timeout=timeout, **fields)
        except DriverTimeoutError:
            raise  # The driver may have started it.
        except DriverError:
            run.is_asked = False
            raise
        run.run_id = run.status.run_id
        self._to_follow.put_nowait(run)

    async def stop_started(self) -> str:
        """End a part that may have been started. Return the address if it was. Raise nothing."""
        if self.run.is_asked:
            with contextlib.suppress(StdDaqError):
                if self.client.latest.is_busy:
                    await self.client.stop()
                    await self.client.wait(("idle",), STOP_TIMEOUT_S)
                    return self.url
        return ""

    async def renew(self, timeout: float) -> None:
        """Ask for a status of the part, if it goes on. Raise `DriverTimeoutError`, `ConnectionLostError`."""
        run = self.run
        if run.run_id is not None and run.is_going_on:
            status = await self.client.status(timeout)
            if status.run_id == run.run_id:
                run.status = status

    async def follow(self) -> None:
        """Follow all parts that are started. Does not return."""
        while True:
            run = await self._to_follow.get()
            run.end(await self._account(run))
            self._publish()

    async def _account(self, run: PartRun) -> dict[str, Any] | None:
        """Follow a part to its end. Return its account; None, with the reason in `run`, if it is lost."""
        while True:
            try:
                # The connection was lost when the others were stopped.
                if run.is_stopped and self.client.latest.run_id == run.run_id:
                    await self.client.stop()
                async for status in self.client.watch_run():
                    if status.run_id == run.run_id:
                        run.status = status
                    self._publish()
                account = await self.client.last_result()
            except DriverError as error:
                run.is_connected, run.reason = False, str(error).removeprefix(f"{self.url}: ")
                self._publish()
                if not await self._find_again():
                    return None
                run.is_connected = True
                continue
            if account is not None and account.get("run_id") == run.run_id:
                return account
            run.reason = "the driver was restarted, and does not know the run any more"
            return None

    async def _find_again(self) -> bool:
        """Connect again. Return False when no other part goes on and the driver stays lost."""
        alone_since = None
        while True:
            with contextlib.suppress(DriverError):
                await self.client.close()
                await self.client.connect(CONNECT_TIMEOUT_S)
                return True
            if self._others_go_on():
                alone_since = None
            else:
                alone_since = alone_since or time.monotonic()
                if time.monotonic() - alone_since > LOST_TIMEOUT_S:
                    return False
            await asyncio.sleep(RECONNECT_PERIOD_S)
