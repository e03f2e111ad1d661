"""The driver's client for asyncio: commands with typed errors, statuses to watch, waits with timeouts.

One task reads the connection and gives each status to the protocol, so that nothing is missed between two
calls and nothing accumulates while nothing is read. Every wait has a timeout.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from stddaq.client.address import split_token
from stddaq.client.connection import CONNECT_TIMEOUT_S, open_connection
from stddaq.client.driver_protocol import (
    DriverHistory,
    DriverProtocol,
    Expectation,
    FollowedRun,
    protocol_for,
    refusal,
)
from stddaq.client.errors import (
    CommandRefusedError,
    ConnectionLostError,
    DriverError,
    DriverNotAllowedError,
    DriverTimeoutError,
    DriverUnreachableError,
    RunFailedError,
    UnsupportedError,
)
from stddaq.client.ownership import OwnProcess
from stddaq.client.status import DriverStatus, parse_status
from stddaq.client.status_watcher import StatusWatcher
from stddaq.client.waiting import patient_timeout
from stddaq.wire.default_addresses import DEFAULT_URL
from stddaq.wire.driver_messages import CommandError, parse_command

COMMAND_TIMEOUT_S = 10.0
# Large files on a slow file system take long; the driver itself gives up after 60 s.
REPAIR_TIMEOUT_S = 70.0
# A driver sends a status every 0.1 s.
SILENCE_TIMEOUT_S = 5.0
# A driver without replies leaves `file_saved` or `error` by itself within this time.
SETTLING_TIMEOUT_S = 1.0
RECONNECT_PERIOD_S = 0.2


class AsyncDriverClient:
    """A connection to one driver. Use it as an async context manager, in one event loop."""

    def __init__(self, url: str = DEFAULT_URL, *, token: str | None = None, reconnect: bool = False) -> None:
        """`url` is `ws://host:port`. With `reconnect`, watching and waiting continue after a restart of the
        driver; without, they raise `ConnectionLostError`.

        `token` is for a driver that demands one. It may also be in the URL, `ws://any:TOKEN@host:port`, or
        in the environment variable STDDAQ_TOKEN."""
        self.url, self._token = split_token(url, token)
        self._reconnect = reconnect
        self._connection: ClientConnection | None = None
        self._reader: asyncio.Task[None] | None = None
        self._history = DriverHistory()
        self._protocol: DriverProtocol | None = None
        self._lost: ConnectionLostError | None = None
        self._starting = asyncio.Lock()
        self._is_closing = False
        self._process = OwnProcess(self.url)

    async def connect(self, timeout: float = CONNECT_TIMEOUT_S) -> Self:
        """Connect and receive the first status. Raise `DriverUnreachableError`, `DriverNotAllowedError`."""
        if self._reader is not None:
            self._process.check()
            raise DriverError(f"{self.url}: this client is connected already")
        self._process = OwnProcess(self.url)
        self._lost, self._is_closing = None, False
        await self._open(timeout)
        self._reader = asyncio.create_task(self._read(), name=f"statuses of {self.url}")
        return self

    async def close(self) -> None:
        """Disconnect. A run in progress continues."""
        if not self._process.is_this:
            return  # The connection is that of the process that opened it.
        try:
            await self._end_reader()
        finally:
            self._fail(ConnectionLostError(f"{self.url}: this client was closed"))
            if self._connection is not None:
                await self._connection.close()
                self._connection = None

    async def _end_reader(self) -> None:
        if self._reader is None:
            return
        self._is_closing = True
        self._reader.cancel()
        try:
            with contextlib.suppress(asyncio.CancelledError):
                await self._reader
        finally:
            self._reader = None

    async def __aenter__(self) -> Self:
        return await self.connect()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def latest(self) -> DriverStatus:
        """The latest status. Raise `ConnectionLostError`."""
        self._connected()
        assert self._history.latest is not None
        return self._history.latest

    async def start(
        self, path: str | Path, *, timeout: float = COMMAND_TIMEOUT_S, **fields: Any
    ) -> DriverStatus:
        """Start a run; its files are written into the directory `path`, as the driver sees it.

        `fields` are those of `stddaq.wire.driver_messages.StartCommand`: `n_image`, `file_prefix`,
        `writer_id`, `start_id`; with stddaq's driver also `overwrite`, `strict`, `end_on_restart`,
        `first_image_timeout`, `nexus`, `metadata`.
        Return the status of the admitted run, which `wait_until_ready` and `wait_until_saved` then follow.
        Raise `CommandRefusedError` with the driver's reason (`DriverBusyError` during another run),
        `DriverTimeoutError`, `ConnectionLostError`.
        """
        command = _run_command("start", path, fields)
        async with self._starting:
            if (settled := self._connected().settled()) is not None:
                with contextlib.suppress(DriverTimeoutError):
                    await self._result(settled, min(timeout, SETTLING_TIMEOUT_S), "the state idle")
            return await self._answer(self._connected().start(), command, timeout)

    async def check(
        self, path: str | Path, *, timeout: float = COMMAND_TIMEOUT_S, **fields: Any
    ) -> DriverStatus:
        """Return whether `start` with the same arguments would be admitted, now or after the present run.

        The message `raw` has `free_bytes`, `needed_bytes` (None if it is not known) and `planned_files`.
        Raise `CommandRefusedError` with the reason, `UnsupportedError` when the driver is not stddaq's,
        `DriverTimeoutError`, `ConnectionLostError`.
        """
        command = _run_command("check", path, fields)
        return await self._answer(self._expect_answer("check"), command, timeout)

    async def annotate(self, *, timeout: float = COMMAND_TIMEOUT_S, **fields: Any) -> DriverStatus:
        """Add metadata to the run that is being recorded, until its files are closed.

        `fields` are those of `stddaq.wire.driver_messages.AnnotateCommand`: `nexus` and `metadata`, objects.
        Single values of `nexus`, and keys of `metadata`, replace those of `start` and of earlier calls.
        Raise `CommandRefusedError` with the reason, such as that there is no run, `UnsupportedError` when the
        driver is not stddaq's, `DriverTimeoutError`, `ConnectionLostError`.
        """
        command = _checked({"command": "annotate", **fields})
        return await self._answer(self._expect_answer("annotate"), command, timeout)

    async def stop(self, timeout: float = COMMAND_TIMEOUT_S) -> DriverStatus:
        """End the run, in any state; `wait_until_saved` waits for its files.

        Raise `DriverTimeoutError`, `ConnectionLostError`.
        """
        return await self._answer(self._connected().stop(), {"command": "stop"}, timeout)

    async def status(self, timeout: float = COMMAND_TIMEOUT_S) -> DriverStatus:
        """Return a status newer than this call. Raise `DriverTimeoutError`, `ConnectionLostError`."""
        answer, has_to_be_sent = self._connected().status()
        if has_to_be_sent:
            return await self._answer(answer, {"command": "status"}, timeout)
        return await self._result(answer, timeout, "a status")

    async def last_result(self, timeout: float = COMMAND_TIMEOUT_S) -> dict[str, Any] | None:
        """Return the account of the last run: counts, lists of ids, files. None when there was no run.

        Raise `UnsupportedError` when the driver is not stddaq's, `DriverTimeoutError`,
        `ConnectionLostError`.
        """
        result = (await self._request("last_result", timeout)).raw.get("result")
        return result if isinstance(result, dict) else None

    async def repair(self, timeout: float = REPAIR_TIMEOUT_S) -> list[dict[str, Any]]:
        """Repair the files of the last run that a killed writer did not close, so that they can be opened.

        Return for each file: `path`, `n_images` that it holds, `n_cut` incomplete images that were removed,
        `repaired` (False when the file was valid), and `reason` why it could not be repaired, or None.
        Raise `DriverBusyError` during a run, `UnsupportedError` when the driver is not stddaq's,
        `DriverTimeoutError`, `ConnectionLostError`.
        """
        repaired = (await self._request("repair", timeout)).raw.get("repaired")
        return repaired if isinstance(repaired, list) else []

    def watch(self) -> StatusWatcher:
        """Return an endless async iterator of statuses, from the latest on.

        A slow reader gets every change of state, and only the newest of the counts in between.
        The iterator raises `ConnectionLostError` when the connection is lost.
        """
        self._connected()
        return StatusWatcher(self._history)

    def watch_run(self, timeout: float | None = None) -> StatusWatcher:
        """Return an iterator as `watch` does, which ends with `file_saved` or `error` of the current run.

        The current run is the one that this client started last, or else the one in progress.
        Raise `DriverError` when there is none. The iterator raises `DriverTimeoutError` when the run has
        not ended `timeout` seconds from now; None: no limit.
        """
        self._connected()
        return StatusWatcher(self._history, self._current_run(), timeout, self.url)

    async def wait_for(
        self, condition: Callable[[DriverStatus], bool], timeout: float, what: str = "that status"
    ) -> DriverStatus:
        """Return the first status, from the latest on, for which `condition` is true.

        Raise `DriverTimeoutError` after `timeout` seconds, naming `what`; `ConnectionLostError`.
        """
        if self._lost is None and condition(self.latest):
            return self.latest
        return await self._result(self._expect(condition), timeout, what)

    async def wait(self, states: Iterable[str], timeout: float) -> DriverStatus:
        """Wait until the driver is in one of `states`. Raise `DriverTimeoutError`, `ConnectionLostError`."""
        wanted = frozenset(states)
        return await self.wait_for(
            lambda status: status.status in wanted, timeout, f"the state {' or '.join(sorted(wanted))}"
        )

    async def wait_until_ready(self, timeout: float) -> DriverStatus:
        """Wait until the current run (see `watch_run`) records every image that is published from now on.

        Raise `RunFailedError` when it fails before, `DriverTimeoutError`, `ConnectionLostError`.
        """
        run = self._current_run()
        status = await self._follow(run, lambda: run.ready, timeout, "the driver to wait for images")
        await self._raise_failure(run, status)
        return status

    async def wait_until_saved(self, timeout: float) -> DriverStatus:
        """Wait until the files of the current run (see `watch_run`) are closed.

        Raise `RunFailedError` when it ended in `error`, `DriverTimeoutError`, `ConnectionLostError`.
        """
        run = self._current_run()
        status = await self._follow(run, lambda: run.ended, timeout, "the end of the run")
        await self._raise_failure(run, status)
        if status.status != "file_saved" and self._connected().keeps_accounts:
            # The run ended while this client was not connected.
            account = await self._account(run)
            if account is None:
                raise RunFailedError("how it ended is not known: the driver does not know this run any more")
            if account.get("outcome") == "error":
                raise RunFailedError(str(account.get("reason")), account)
        return status

    async def _follow(
        self, run: FollowedRun, reached: Callable[[], DriverStatus | None], timeout: float, what: str
    ) -> DriverStatus:
        if (status := reached()) is None:
            await self._result(self._expect(lambda _: reached() is not None), timeout, what)
            status = reached()
        assert status is not None
        return status

    async def _raise_failure(self, run: FollowedRun, status: DriverStatus) -> None:
        if status.status == "error":
            raise RunFailedError(status.reason or "the driver gives no reason", await self._account(run))

    async def _account(self, run: FollowedRun) -> dict[str, Any] | None:
        if not self._connected().keeps_accounts:
            return None
        result = await self.last_result()
        return result if result is not None and result.get("run_id") == run.run_id else None

    def _current_run(self) -> FollowedRun:
        run = self._history.current_run()
        if run is None:
            raise DriverError(f"{self.url}: no run is in progress, the driver is {self.latest.status}")
        return run

    async def _request(self, command: str, timeout: float) -> DriverStatus:
        return await self._answer(self._expect_answer(command), {"command": command}, timeout)

    def _expect_answer(self, command: str) -> Expectation:
        try:
            return self._connected().request(command)
        except UnsupportedError as error:
            raise UnsupportedError(f"{self.url}: {error}") from None

    async def _answer(self, answer: Expectation, command: dict[str, Any], timeout: float) -> DriverStatus:
        """Send a command and return its answer. Raise the error that the answer means."""
        connection = self._connection
        assert connection is not None
        try:
            await connection.send(json.dumps(command))
        except ConnectionClosed as error:
            self._history.forget(answer)
            raise ConnectionLostError(f"{self.url}: the driver closed the connection") from error
        status = await self._result(answer, timeout, f"the answer to {command['command']}")
        if (error := refusal(status)) is not None:
            raise error
        return status

    def _expect(self, condition: Callable[[DriverStatus], bool]) -> Expectation:
        if self._lost is None or not self._reconnect:
            self._connected()
        return self._history.expect(condition)

    async def _result(self, expectation: Expectation, timeout: float, what: str) -> DriverStatus:
        """Wait for an expectation, and forget it."""
        over = asyncio.Event()
        expectation.notify = over.set
        try:
            if not expectation.is_over:
                async with patient_timeout(timeout):
                    await over.wait()
        except TimeoutError:
            raise DriverTimeoutError(
                f"{self.url}: timeout of {timeout:g} s while waiting for {what}"
            ) from None
        finally:
            self._history.forget(expectation)
        if isinstance(expectation.error, ConnectionLostError):
            raise ConnectionLostError(str(expectation.error))
        if expectation.error is not None:
            raise expectation.error
        assert expectation.status is not None
        return expectation.status

    def _connected(self) -> DriverProtocol:
        """Return the protocol of the connection. Raise `ConnectionLostError`, `ForkedClientError`."""
        self._process.check()
        if self._lost is not None:
            raise ConnectionLostError(str(self._lost))
        if self._reader is None or self._protocol is None:
            raise ConnectionLostError(f"{self.url}: this client is not connected")
        return self._protocol

    async def _open(self, timeout: float) -> None:
        self._connection, first = await open_connection(self.url, timeout, self._token)
        self._protocol = protocol_for(first, self._history)
        self._protocol.receive(first)

    async def _read(self) -> None:
        """Receive statuses until the connection ends; with `reconnect`, open it again."""
        while True:
            lost = await self._read_one_connection()
            if not self._reconnect:
                self._fail(lost)
                return
            self._lost = lost
            assert self._protocol is not None
            self._protocol.connection_lost(lost)
            while self._lost is not None:
                try:
                    await self._open(CONNECT_TIMEOUT_S)
                except (DriverUnreachableError, DriverNotAllowedError):
                    await asyncio.sleep(RECONNECT_PERIOD_S)
                else:
                    self._lost = None

    async def _read_one_connection(self) -> ConnectionLostError:
        assert self._connection is not None
        assert self._protocol is not None
        try:
            while True:
                async with patient_timeout(SILENCE_TIMEOUT_S):
                    message = await self._connection.recv()
                if (status := parse_status(message)) is not None:
                    self._protocol.receive(status)
        except asyncio.CancelledError:
            if not self._is_closing:
                # The event loop ends, and with it the time for a closing handshake.
                self._connection.transport.abort()
            raise
        except TimeoutError:
            self._connection.transport.abort()  # A hung driver does not answer a closing handshake either.
            return ConnectionLostError(f"{self.url}: no status from the driver for {SILENCE_TIMEOUT_S:g} s")
        except ConnectionClosed:
            return ConnectionLostError(f"{self.url}: the driver closed the connection, or was killed")

    def _fail(self, lost: ConnectionLostError) -> None:
        """End every command, wait and watcher with `lost`."""
        self._lost = self._lost or lost
        if self._protocol is not None:
            self._protocol.connection_lost(lost)
        self._history.fail(lost)


def _run_command(name: str, path: str | Path, fields: dict[str, Any]) -> dict[str, Any]:
    """Return the command `start` or `check`. Raise `CommandRefusedError`."""
    return _checked({"command": name, "path": str(Path(path).absolute()), **fields})


def _checked(command: dict[str, Any]) -> dict[str, Any]:
    """Return `command`. Raise `CommandRefusedError` for what the driver would refuse."""
    try:
        parse_command(json.dumps(command, default=repr))
    except CommandError as error:
        raise CommandRefusedError(error.error, str(error)) from error
    return command
