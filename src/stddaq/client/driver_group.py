"""Several drivers as one: each records its part of the same images, in one run with one account.

The clients of a group have the methods of those of one driver. The statuses of the drivers become one status,
which ends when all of them have ended; a driver that is lost meanwhile does not end the run of the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import uuid
from collections.abc import Callable, Coroutine, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self, TypeVar

from stddaq.client.async_driver import COMMAND_TIMEOUT_S, REPAIR_TIMEOUT_S, AsyncDriverClient
from stddaq.client.connection import CONNECT_TIMEOUT_S
from stddaq.client.driver import DriverClient
from stddaq.client.driver_protocol import FollowedRun, ReplyingDriver
from stddaq.client.errors import (
    CommandRefusedError,
    ConnectionLostError,
    DriverBusyError,
    DriverError,
    RunFailedError,
    UnsupportedError,
)
from stddaq.client.group_member import GroupMember, PartRun
from stddaq.client.ownership import OwnProcess
from stddaq.client.status import DriverStatus, parse_status
from stddaq.joined_account import joined_account, joined_files, part_prefix
from stddaq.text import mismatch
from stddaq.wire.driver_messages import RUN_STATES
from stddaq.wire.run_defaults import DEFAULT_FILE_PREFIX, DEFAULT_N_IMAGE

T = TypeVar("T")

# Longer than a driver waits for its writers and files.
READY_TIMEOUT_S = 30.0
IDLE_TIMEOUT_S = 5.0


class _JoinedRun:
    """A run of a group.

    Attributes:
        id: made here; each part has its own, too.
        account: None before its end.
        is_left: the drivers are idle again.
    """

    def __init__(self, fields: dict[str, Any]) -> None:
        self.id = uuid.uuid4().hex
        self.fields = fields
        self.started_at = datetime.now(UTC)
        self.account: dict[str, Any] | None = None
        self.is_left = False


class AsyncDriverGroup(AsyncDriverClient):
    """Connections to several drivers of stddaq, which record one run. Use it as an `AsyncDriverClient`.

    Each driver writes its part into files of its own, `<prefix>Part1_...` for the first. Images of the parts
    belong together by their ids; `stddaq.files.joined_runs` makes the master file over all parts.
    """

    def __init__(self, urls: Sequence[str], *, tokens: Sequence[str | None] = ()) -> None:
        """`urls` are those of the drivers, in the order of the parts. `tokens` are for drivers that demand
        one; they may also be in the URLs, or in the environment variable STDDAQ_TOKEN.

        Raise `DriverError` when there are none, or one of them twice.
        """
        self._members = [
            GroupMember(number, url, token, self._publish, lambda: any(run.is_going_on for run in self._runs))
            for number, (url, token) in enumerate(
                zip(urls, tokens or itertools.repeat(None), strict=False), 1
            )
        ]
        known = [member.url.rstrip("/") for member in self._members]
        if len(set(known)) != len(known) or not known:
            got = ", ".join(known) or "none"
            raise DriverError(mismatch("addresses of drivers", "one or several different ones", got))
        super().__init__(", ".join(known))
        self._joined: _JoinedRun | None = None
        self._leaving: asyncio.Task[None] | None = None

    @property
    def _runs(self) -> list[PartRun]:
        return [member.run for member in self._members]

    async def connect(self, timeout: float = CONNECT_TIMEOUT_S) -> Self:
        """Connect to all drivers. Raise `DriverUnreachableError`, `DriverNotAllowedError`.

        Raise `UnsupportedError` when one is not stddaq's: images are matched by the accounts of the drivers.
        """
        if self._reader is not None:
            raise DriverError(f"{self.url}: this client is connected already")
        try:
            await self._all(lambda member: member.client.connect(timeout))
            for member in self._members:
                if not member.client.latest.is_stddaq:
                    raise UnsupportedError(
                        f"{member.url}: this driver is not stddaq's and keeps no account, which a run of "
                        "several drivers needs"
                    )
        except BaseException:
            await self._close_members()
            raise
        self._process = OwnProcess(self.url)
        self._lost, self._is_closing = None, False
        self._protocol = ReplyingDriver(self._history)
        self._publish()
        self._reader = asyncio.create_task(self._read(), name=f"parts of {self.url}")
        return self

    async def close(self) -> None:
        """Disconnect. A run in progress continues."""
        try:
            await super().close()
        finally:
            if self._leaving is not None:
                self._leaving.cancel()
                await asyncio.wait([self._leaving])
            await self._close_members()

    async def _close_members(self) -> None:
        async with contextlib.AsyncExitStack() as stack:
            for member in self._members:
                stack.push_async_callback(member.client.close)

    async def _read(self) -> None:
        await asyncio.gather(*(member.follow() for member in self._members))

    async def start(
        self, path: str | Path, *, timeout: float = COMMAND_TIMEOUT_S, **fields: Any
    ) -> DriverStatus:
        """Start a run on all drivers, or on none. Return when each of them records every image from now on.

        The arguments are those of `AsyncDriverClient.start`. A restart of the image ids ends the run with an
        error, because images could not be matched after it. When a driver refuses or fails, those that did
        start are stopped, and the error names both: `CommandRefusedError` (`DriverBusyError`),
        `RunFailedError`, `DriverTimeoutError`, `ConnectionLostError`.
        """
        fields["end_on_restart"] = True
        async with self._starting:
            self._connected()
            if self._joined is not None and self._joined.account is None:
                raise DriverBusyError("busy", f"{self.url}: the run before has not ended")
            await self._all(lambda member: member.connect_again())
            # Most refusals come before any file is made.
            await self._all(lambda member: member.expect_idle(timeout))
            await self._all(
                lambda member: member.client.check(path, timeout=timeout, **_of_part(member, fields))
            )
            for member in self._members:
                member.run = PartRun(member.number, member.url)
            prefix = {"file_prefix": fields.get("file_prefix", DEFAULT_FILE_PREFIX)}
            self._joined = _JoinedRun({**fields, **prefix})
            self._history.run = FollowedRun(self._joined.id)
            try:
                await self._all(lambda member: member.start(path, timeout, _of_part(member, fields)))
                await self._all(lambda member: member.client.wait_until_ready(READY_TIMEOUT_S))
            except BaseException as error:
                await asyncio.shield(self._give_up(error))
                raise
            self._publish()
            return self._status()

    async def _give_up(self, error: BaseException) -> None:
        """Stop the parts that did start, and add that to the error."""
        stopped = await asyncio.gather(*(member.stop_started() for member in self._members))
        self._joined = self._history.run = None
        self._publish()
        names = ", ".join(filter(None, stopped))
        if names and isinstance(error, DriverError):
            _set_words(error, f"{error}; stopped again, with files that hold no images: {names}")

    async def check(
        self, path: str | Path, *, timeout: float = COMMAND_TIMEOUT_S, **fields: Any
    ) -> DriverStatus:
        """Return whether `start` with the same arguments would be admitted by all drivers.

        The message `raw` has the `planned_files` of all. Raise as `AsyncDriverClient.check`.
        """
        self._connected()
        answers = await self._all(
            lambda member: member.client.check(path, timeout=timeout, **_of_part(member, fields))
        )
        planned = [file for answer in answers for file in answer.raw.get("planned_files") or ()]
        return self._status(planned_files=planned)

    async def stop(self, timeout: float = COMMAND_TIMEOUT_S) -> DriverStatus:
        """End the run on all drivers that are connected; `wait_until_saved` waits for its files.

        A driver that was cut off ends it when it is found again before `wait_until_saved` returns.
        Raise `DriverTimeoutError`, `ConnectionLostError` when no driver is connected.
        """
        self._connected()
        for run in self._runs:
            run.is_stopped = True
        reached = [member for member in self._members if member.run.is_connected]
        answers = await asyncio.gather(
            *(member.client.stop(timeout) for member in reached), return_exceptions=True
        )
        errors = [answer for answer in answers if isinstance(answer, BaseException)]
        # The account tells of a driver that was lost.
        serious = [error for error in errors if not isinstance(error, ConnectionLostError)]
        if serious:
            raise serious[0]
        if len(errors) == len(reached):
            raise ConnectionLostError(f"{self.url}: none of the drivers is connected")
        return self._status()

    async def status(self, timeout: float = COMMAND_TIMEOUT_S) -> DriverStatus:
        """Return a status newer than this call. Raise `DriverTimeoutError`, `ConnectionLostError`."""
        self._connected()
        await self._all(lambda member: member.renew(timeout))
        self._publish()
        return self._status()

    async def last_result(self, timeout: float = COMMAND_TIMEOUT_S) -> dict[str, Any] | None:
        """Return the account of the last run of this group; see `stddaq.joined_account`. None without one."""
        del timeout  # The drivers have sent theirs at the end of the run.
        self._connected()
        return None if self._joined is None else self._joined.account

    async def repair(self, timeout: float = REPAIR_TIMEOUT_S) -> list[dict[str, Any]]:
        """Repair the files of the last run of each driver, as `AsyncDriverClient.repair` does."""
        self._connected()
        repaired = await self._all(lambda member: member.client.repair(timeout))
        return [file for files in repaired for file in files]

    async def annotate(self, *, timeout: float = COMMAND_TIMEOUT_S, **fields: Any) -> DriverStatus:
        """Add metadata to the runs of all parts; see `AsyncDriverClient.annotate`."""
        await self._all(lambda member: member.client.annotate(timeout=timeout, **fields))
        return self.latest

    async def _all(self, call: Callable[[GroupMember], Coroutine[Any, Any, T]]) -> list[T]:
        """Call for all members at once. Raise the first error, with the address of its driver."""
        answers = await asyncio.gather(*map(call, self._members), return_exceptions=True)
        for member, answer in zip(self._members, answers, strict=True):
            if isinstance(answer, DriverError) and not str(answer).startswith(member.url):
                _set_words(answer, f"{member.url}: {answer}")
            if isinstance(answer, BaseException):
                raise answer
        return [answer for answer in answers if not isinstance(answer, BaseException)]

    def _publish(self) -> None:
        """Give the status of the group to everything that waits for one."""
        if self._protocol is None:
            return
        run, parts = self._joined, [run.part for run in self._runs if run.part is not None]
        if run is not None and run.account is None and len(parts) == len(self._members):
            run.account = joined_account(run.id, parts, run.fields, run.started_at, datetime.now(UTC))
            self._leaving = asyncio.create_task(self._leave(run), name=f"end of a run of {self.url}")
        self._protocol.receive(self._status())

    async def _leave(self, run: _JoinedRun) -> None:
        """Publish that the drivers are idle, after a run."""
        for member in self._members:
            with contextlib.suppress(DriverError):
                await member.client.wait(("idle",), IDLE_TIMEOUT_S)
        run.is_left = True
        self._publish()

    def _status(self, **more: Any) -> DriverStatus:
        """Return the status of the group, as a driver would send it."""
        run = self._joined
        message = {"status": "idle", "run_id": None} if run is None or run.is_left else self._run_status(run)
        status = parse_status(json.dumps({**message, **more}))
        assert status is not None
        return status

    def _run_status(self, run: _JoinedRun) -> dict[str, Any]:
        parts = self._runs
        statuses = [part.status for part in parts if part.status is not None]
        if run.account is not None:
            state, reason = run.account["outcome"], run.account.get("reason")
        else:
            unfinished = [part for part in parts if part.part is None]
            going_on = [part.state for part in unfinished if part.is_connected]
            states = going_on or [part.state for part in unfinished]
            state = min(states, key=RUN_STATES.index, default="saving_file")
            reason = "; ".join(
                f"part {part.number} ({part.url}): {part.reason}" for part in parts if part.reason
            )
        # An image counts when each part has it.
        everywhere = statuses if len(statuses) == len(parts) else ()
        return {
            "status": state,
            "run_id": run.id,
            **({"reason": reason} if reason else {}),
            "n_image": run.fields.get("n_image", DEFAULT_N_IMAGE),
            "count": min((status.count or 0 for status in everywhere), default=0),
            "n_received": min((status.n_received or 0 for status in everywhere), default=0),
            **{
                key: sum(getattr(status, key) or 0 for status in statuses)
                for key in ("n_damaged", "n_overwritten", "n_failed", "n_skipped")
            },
            "files": joined_files([status.files.get("raw", ()) for status in statuses]),
            "parts": [part.as_json() for part in parts],
        }


class DriverGroup(DriverClient):
    """Connections to several drivers, which record one run. Use it as a `DriverClient`."""

    def __init__(self, urls: Sequence[str], *, tokens: Sequence[str | None] = ()) -> None:
        """Take the arguments of `AsyncDriverGroup`, and raise its errors."""
        super().__init__()
        self._client = AsyncDriverGroup(urls, tokens=tokens)
        self.url = self._client.url


def _of_part(member: GroupMember, fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of `start` for one driver."""
    prefix = fields.get("file_prefix", DEFAULT_FILE_PREFIX)
    return {**fields, "file_prefix": part_prefix(prefix, member.number)}


def _set_words(error: DriverError, words: str) -> None:
    error.args = (words,)
    if isinstance(error, CommandRefusedError | RunFailedError):
        error.reason = words
