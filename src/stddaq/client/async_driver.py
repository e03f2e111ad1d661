"""The driver's client for asyncio: commands with typed errors, statuses to watch, waits with timeouts.

It works with drivers of other implementations too, which send only `status`, `count` and `reason` and may
miss states between two statuses. One task reads the connection; commands, watchers and waits get from it
what they need, so that nothing is lost between two calls and nothing piles up when nobody reads.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI

from stddaq.client.errors import (
    CommandRefusedError,
    ConnectionLostError,
    DriverBusyError,
    DriverError,
    DriverTimeoutError,
    DriverUnreachableError,
    RunFailedError,
    UnsupportedError,
)
from stddaq.client.status import BUSY_STATES, DriverStatus, StatusQueue, parse_status
from stddaq.wire.default_addresses import DEFAULT_URL
from stddaq.wire.driver_messages import CommandError, parse_command

CONNECT_TIMEOUT_S = 5.0
COMMAND_TIMEOUT_S = 10.0
# Large files on a slow file system take their time; the driver itself gives up after 60 s.
REPAIR_TIMEOUT_S = 70.0
# A driver speaks ten times a second.
SILENCE_TIMEOUT_S = 5.0
# A driver of another implementation leaves `file_saved` or `error` by itself within this time.
SETTLING_TIMEOUT_S = 1.0
RECONNECT_PERIOD_S = 0.2
CLOSE_TIMEOUT_S = 1.0
# An account lists up to some thousand image ids.
MAX_MESSAGE_BYTES = 64 * 2**20


class AsyncDriverClient:
    """A connection to one driver. Use it as an async context manager, in one event loop."""

    def __init__(self, url: str = DEFAULT_URL, *, reconnect: bool = False) -> None:
        """`url` as `ws://host:port`. With `reconnect`, watching and waiting go on when the driver comes back
        after it vanished; otherwise they end with `ConnectionLostError`."""
        self.url = url
        self._reconnect = reconnect
        self._connection: ClientConnection | None = None
        self._reader: asyncio.Task[None] | None = None
        self._latest: DriverStatus | None = None
        self._speaks_replies = False
        self._lost: ConnectionLostError | None = None
        self._replies: dict[str, deque[asyncio.Future[DriverStatus]]] = {}
        self._waits: set[_Wait] = set()
        self._watchers: weakref.WeakSet[StatusWatcher] = weakref.WeakSet()
        self._run: _Run | None = None
        self._starting = asyncio.Lock()

    async def connect(self, timeout: float = CONNECT_TIMEOUT_S) -> Self:
        """Connect and receive the first status. Raises `DriverUnreachableError`."""
        if self._reader is not None:
            raise DriverError(f"{self.url}: this client is connected already")
        self._lost = None
        self._connection, status = await self._open(timeout)
        self._take(status)
        self._reader = asyncio.create_task(self._read(), name=f"statuses of {self.url}")
        return self

    async def close(self) -> None:
        """Disconnect. A run goes on."""
        if self._reader is not None:
            self._reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reader
            self._reader = None
        self._fail(ConnectionLostError(f"{self.url}: this client was closed"))
        if self._connection is not None:
            await self._connection.close()
            self._connection = None

    async def __aenter__(self) -> Self:
        return await self.connect()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def latest(self) -> DriverStatus:
        """The status received last. Raises `ConnectionLostError`."""
        self._check_connected()
        assert self._latest is not None
        return self._latest

    async def start(
        self, path: str | Path, *, timeout: float = COMMAND_TIMEOUT_S, **fields: Any
    ) -> DriverStatus:
        """Start a run; the files appear in the directory `path`, which the driver must be able to see.

        `fields` are those of `stddaq.wire.driver_messages.StartCommand`: `n_image`, `file_prefix`,
        `writer_id`, `start_id`; with our driver also `overwrite`, `strict`, `end_on_restart`,
        `first_image_timeout`.
        Returns the status of the admitted run; `wait_until_ready` and `wait_until_saved` then follow it.
        Raises `CommandRefusedError` with the driver's reason (`DriverBusyError` during another run),
        `DriverTimeoutError`, `ConnectionLostError`.
        """
        command = {"command": "start", "path": str(Path(path).absolute()), **fields}
        try:
            parse_command(json.dumps(command, default=repr))
        except CommandError as error:
            raise CommandRefusedError(error.error, str(error)) from error
        async with self._starting:
            if self._speaks_replies:
                status = await self._ask(command, timeout)
            else:
                status = await self._start_without_reply(command, timeout)
        return status

    async def _start_without_reply(self, command: dict[str, Any], timeout: float) -> DriverStatus:
        """Start on a driver that does not mark its answer: what it says next has to be told from the past."""
        if not self.latest.is_busy and self.latest.status != "idle":
            with contextlib.suppress(DriverTimeoutError):
                await self.wait(("idle",), min(timeout, SETTLING_TIMEOUT_S))
        was_busy = self.latest.is_busy
        # The new run is followed from the first status on, so that none is missed after this method returns.
        run = _Run(None)
        answers = {"rejected", "error", "file_saved"} | (
            {"started", "creating_file"} if was_busy else BUSY_STATES
        )

        def answered(status: DriverStatus) -> bool:
            if status.status not in answers:
                return False
            if status.status not in ("rejected", "error"):
                run.observe(status)
                self._run = run
            return True

        with self._expect(answered) as answer:
            await self._send(command)
            status = await answer.result(timeout, "the driver's answer to start")
        _raise_refusal(status)
        return status

    async def stop(self, timeout: float = COMMAND_TIMEOUT_S) -> DriverStatus:
        """End the run, in whatever state it is; `wait_until_saved` waits for its files.

        Raises `DriverTimeoutError`, `ConnectionLostError`.
        """
        if self._speaks_replies:
            return await self._ask({"command": "stop"}, timeout)
        with self._expect(lambda _: True) as answer:
            await self._send({"command": "stop"})
            return await answer.result(timeout, "the driver's answer to stop")

    async def status(self, timeout: float = COMMAND_TIMEOUT_S) -> DriverStatus:
        """A status that is newer than this call. Raises `DriverTimeoutError`, `ConnectionLostError`."""
        if self._speaks_replies:
            return await self._ask({"command": "status"}, timeout)
        with self._expect(lambda _: True) as answer:
            return await answer.result(timeout, "a status")

    async def last_result(self, timeout: float = COMMAND_TIMEOUT_S) -> dict[str, Any] | None:
        """The account of the run that ended last: counts, lists of ids, files. None when there was none.

        Raises `UnsupportedError` when the driver keeps none (another implementation), `DriverTimeoutError`,
        `ConnectionLostError`.
        """
        self._check_connected()
        if not self._speaks_replies:
            raise UnsupportedError(f"{self.url}: this driver does not keep the account of its last run")
        reply = await self._ask({"command": "last_result"}, timeout)
        result = reply.raw.get("result")
        return result if isinstance(result, dict) else None

    async def repair(self, timeout: float = REPAIR_TIMEOUT_S) -> list[dict[str, Any]]:
        """Make the files of the last run that a writer has not closed (it was killed) openable for everyone.

        For each file: `path`, `n_images` that it holds, `n_cut` images that were incomplete, `repaired`
        (False when there was nothing to do), and `reason` why that was not possible, or None. Raises
        `DriverBusyError` during a run, `UnsupportedError` (another implementation), `DriverTimeoutError`,
        `ConnectionLostError`.
        """
        self._check_connected()
        if not self._speaks_replies:
            raise UnsupportedError(
                f"{self.url}: this driver cannot repair files; use `stddaq repair FILE...`"
            )
        reply = await self._ask({"command": "repair"}, timeout)
        repaired = reply.raw.get("repaired")
        return repaired if isinstance(repaired, list) else []

    def watch(self) -> StatusWatcher:
        """An async iterator of statuses, from the latest on, without end.

        A reader that is slow gets every change of state, of the counts in between only the newest.
        It raises `ConnectionLostError` when the driver vanishes.
        """
        watcher = StatusWatcher(self.latest)
        self._watchers.add(watcher)
        return watcher

    def watch_run(self) -> StatusWatcher:
        """As `watch`, but only the statuses of the current run, with `file_saved` or `error` as the last.

        The current run is the one that this client started last, or else the one that is going on.
        Raises `DriverError` when there is none.
        """
        watcher = StatusWatcher(self.latest, self._current_run())
        self._watchers.add(watcher)
        return watcher

    async def wait_for(
        self, condition: Callable[[DriverStatus], bool], timeout: float, what: str = "that status"
    ) -> DriverStatus:
        """The first status, from the latest on, for which `condition` is true.

        Raises `DriverTimeoutError` after `timeout` seconds, naming `what`; `ConnectionLostError`.
        """
        if self._lost is None and condition(self.latest):
            return self.latest
        with self._expect(condition) as wait:
            return await wait.result(timeout, what)

    async def wait(self, states: Iterable[str], timeout: float) -> DriverStatus:
        """Wait until the driver is in one of `states`. Raises `DriverTimeoutError`, `ConnectionLostError`."""
        wanted = frozenset(states)
        return await self.wait_for(
            lambda status: status.status in wanted, timeout, f"the state {' or '.join(sorted(wanted))}"
        )

    async def wait_until_ready(self, timeout: float) -> DriverStatus:
        """Wait until the current run (see `watch_run`) records every image that is published from now on.

        Raises `RunFailedError` when it fails before, `DriverTimeoutError`, `ConnectionLostError`.
        """
        run = self._current_run()
        status = await self._follow(run, lambda: run.ready, timeout, "the driver to wait for images")
        if status.status == "error":
            raise RunFailedError(status.reason or "the driver gives no reason", await self._account(run))
        return status

    async def wait_until_saved(self, timeout: float) -> DriverStatus:
        """Wait until the files of the current run (see `watch_run`) are closed.

        Raises `RunFailedError` when it ended in `error`, `DriverTimeoutError`, `ConnectionLostError`.
        """
        run = self._current_run()
        status = await self._follow(run, lambda: run.ended, timeout, "the end of the run")
        if status.status == "error":
            raise RunFailedError(status.reason or "the driver gives no reason", await self._account(run))
        if status.status != "file_saved" and self._speaks_replies:
            # The end itself was missed while we were not connected.
            account = await self._account(run)
            if account is None:
                raise RunFailedError("how it ended is not known: the driver does not know this run any more")
            if account.get("outcome") == "error":
                raise RunFailedError(str(account.get("reason")), account)
        return status

    async def _follow(
        self, run: _Run, reached: Callable[[], DriverStatus | None], timeout: float, what: str
    ) -> DriverStatus:
        if (status := reached()) is None:
            with self._expect(lambda _: reached() is not None) as wait:
                await wait.result(timeout, what)
            status = reached()
        assert status is not None
        return status

    async def _account(self, run: _Run) -> dict[str, Any] | None:
        if not self._speaks_replies:
            return None
        result = await self.last_result()
        return result if result is not None and result.get("run_id") == run.run_id else None

    def _current_run(self) -> _Run:
        if self._run is not None and (self._run.is_own or self._run.ended is None):
            return self._run
        latest = self.latest
        if latest.is_busy:
            self._run = _Run(latest.run_id, is_own=False)
            self._run.observe(latest)
        elif self._run is None:
            raise DriverError(f"{self.url}: no run is going on, the driver is {latest.status}")
        return self._run

    async def _ask(self, command: dict[str, Any], timeout: float) -> DriverStatus:
        """Send a command and return the reply to it, which is told from broadcasts by its `command`."""
        self._check_connected()
        name = command["command"]
        reply: asyncio.Future[DriverStatus] = asyncio.get_running_loop().create_future()
        # Replies come in the order of the commands. One that is not waited for any more keeps its place,
        # so that its late reply never counts for a later command.
        self._replies.setdefault(name, deque()).append(reply)
        try:
            await self._send(command)
            async with asyncio.timeout(timeout):
                status = await reply
        except ConnectionLostError:
            reply.cancel()
            raise
        except TimeoutError:
            raise DriverTimeoutError(f"{self.url}: no answer to {name} within {timeout:g} s") from None
        _raise_refusal(status)
        return status

    async def _send(self, command: dict[str, Any]) -> None:
        self._check_connected()
        assert self._connection is not None
        try:
            await self._connection.send(json.dumps(command))
        except ConnectionClosed as error:
            raise ConnectionLostError(f"{self.url}: the driver closed the connection") from error

    def _check_connected(self) -> None:
        if self._lost is not None:
            raise ConnectionLostError(str(self._lost))
        if self._reader is None:
            raise ConnectionLostError(f"{self.url}: this client is not connected")

    @contextlib.contextmanager
    def _expect(self, condition: Callable[[DriverStatus], bool]) -> Iterator[_Wait]:
        """A wait that sees every status received inside the `with` block."""
        if self._lost is None or not self._reconnect:
            self._check_connected()
        wait = _Wait(condition, self.url)
        self._waits.add(wait)
        try:
            yield wait
        finally:
            self._waits.discard(wait)
            wait.future.cancel()

    async def _open(self, timeout: float) -> tuple[ClientConnection, DriverStatus]:
        try:
            async with asyncio.timeout(timeout):
                # Liveness is seen from the statuses; a proxy from the environment is never meant.
                connection = await connect(
                    self.url,
                    proxy=None,
                    ping_interval=None,
                    max_size=MAX_MESSAGE_BYTES,
                    open_timeout=None,
                    close_timeout=CLOSE_TIMEOUT_S,
                )
                try:
                    status = None
                    while status is None:
                        status = parse_status(await connection.recv())
                except BaseException:
                    await connection.close()
                    raise
        except TimeoutError:
            raise DriverUnreachableError(f"{self.url}: no status of a driver within {timeout:g} s") from None
        except OSError as error:
            raise DriverUnreachableError(
                f"{self.url}: no driver answers there ({error.strerror or error}); is it started?"
            ) from error
        except (InvalidHandshake, InvalidURI, ConnectionClosed) as error:
            raise DriverUnreachableError(f"{self.url}: who answers there is no driver ({error})") from error
        return connection, status

    async def _read(self) -> None:
        """Take statuses until the connection ends; with `reconnect`, open it again."""
        while True:
            lost = await self._read_one_connection()
            if not self._reconnect:
                self._fail(lost)
                return
            self._lost = lost
            self._fail_replies(lost)
            while self._lost is not None:
                try:
                    self._connection, status = await self._open(CONNECT_TIMEOUT_S)
                except DriverUnreachableError:
                    await asyncio.sleep(RECONNECT_PERIOD_S)
                else:
                    self._lost = None
                    self._take(status)

    async def _read_one_connection(self) -> ConnectionLostError:
        assert self._connection is not None
        try:
            while True:
                # Not wait_for: before Python 3.12 it can swallow the cancellation by `close`.
                async with asyncio.timeout(SILENCE_TIMEOUT_S):
                    message = await self._connection.recv()
                if (status := parse_status(message)) is not None:
                    self._take(status)
        except TimeoutError:
            self._connection.transport.abort()  # A hung driver would not answer a proper end either.
            return ConnectionLostError(f"{self.url}: the driver said nothing for {SILENCE_TIMEOUT_S:g} s")
        except ConnectionClosed:
            return ConnectionLostError(f"{self.url}: the driver closed the connection, or was killed")

    def _take(self, status: DriverStatus) -> None:
        command = status.raw.get("command")
        self._speaks_replies |= command is not None or "run_id" in status.raw
        refused = "error" in status.raw
        if refused or command is not None:
            self._take_reply(command, status, refused)
        # A refusal says nothing about the state of the driver.
        if not refused and status.status != "rejected":
            self._latest = status
            if self._run is not None:
                self._run.observe(status)
            for watcher in self._watchers:
                watcher.put(status)
        if not refused:
            for wait in tuple(self._waits):
                wait.observe(status)

    def _take_reply(self, command: object, status: DriverStatus, refused: bool) -> None:
        """Hand a reply to its command."""
        if not isinstance(command, str):
            waiting = [name for name, replies in self._replies.items() if replies]
            command = waiting[0] if len(waiting) == 1 else None
        replies = self._replies.get(command) if isinstance(command, str) else None
        if replies:
            reply = replies.popleft()
            if not reply.done():
                reply.set_result(status)
            if command == "start" and not refused:
                # From here on, before the next status is read, so that the run's end cannot be missed.
                self._run = _Run(status.run_id)

    def _fail(self, lost: ConnectionLostError) -> None:
        """End every command, wait and watcher with `lost`."""
        self._lost = self._lost or lost
        self._fail_replies(lost)
        for wait in tuple(self._waits):
            wait.fail(lost)
        for watcher in self._watchers:
            watcher.fail(lost)

    def _fail_replies(self, lost: ConnectionLostError) -> None:
        for replies in self._replies.values():
            for reply in replies:
                if not reply.done():
                    reply.set_exception(ConnectionLostError(str(lost)))
        self._replies.clear()


class StatusWatcher:
    """The async iterator that `AsyncDriverClient.watch` and `watch_run` return."""

    def __init__(self, first: DriverStatus, run: _Run | None = None) -> None:
        self._queue = StatusQueue()
        self._queue.put(first)
        self._run = run
        self._ended = False
        self._news = asyncio.Event()
        self._lost: ConnectionLostError | None = None

    def __aiter__(self) -> StatusWatcher:
        return self

    async def __anext__(self) -> DriverStatus:
        if self._ended:
            raise StopAsyncIteration
        while not len(self._queue):
            if self._lost is not None:
                raise ConnectionLostError(str(self._lost))
            self._news.clear()
            await self._news.wait()
        status = self._queue.get()
        if self._run is not None and (status.is_end or not self._run.covers(status)):
            self._ended = True
            return self._run.ended or status
        return status

    def put(self, status: DriverStatus) -> None:
        """Called by the client for every status."""
        self._queue.put(status)
        self._news.set()

    def fail(self, lost: ConnectionLostError) -> None:
        """Called by the client when no more statuses will come."""
        self._lost = lost
        self._news.set()


class _Run:
    """What was seen of one run, from its start on."""

    def __init__(self, run_id: str | None, is_own: bool = True) -> None:
        self.run_id = run_id
        self.is_own = is_own
        self.ready: DriverStatus | None = None
        self.ended: DriverStatus | None = None

    def covers(self, status: DriverStatus) -> bool:
        """Whether a status speaks of this run."""
        return status.run_id == self.run_id and status.status != "idle"

    def observe(self, status: DriverStatus) -> None:
        if self.ended is not None:
            return
        if not self.covers(status) or status.is_end:
            # `idle`, or another run: the end itself was not sent to us.
            self.ended = status
            self.ready = self.ready or status
        elif status.has_reached("waiting_for_first_image"):
            self.ready = self.ready or status


class _Wait:
    """A condition on the statuses to come, and the future that gets the first that fulfils it."""

    def __init__(self, condition: Callable[[DriverStatus], bool], url: str) -> None:
        self._condition = condition
        self._url = url
        self.future: asyncio.Future[DriverStatus] = asyncio.get_running_loop().create_future()

    def observe(self, status: DriverStatus) -> None:
        if self.future.done():
            return
        try:
            fulfilled = self._condition(status)
        except Exception as error:  # noqa: BLE001 - the caller's own; it must not end the reading task
            self.future.set_exception(error)
            return
        if fulfilled:
            self.future.set_result(status)

    def fail(self, lost: ConnectionLostError) -> None:
        if not self.future.done():
            self.future.set_exception(ConnectionLostError(str(lost)))

    async def result(self, timeout: float, what: str) -> DriverStatus:
        try:
            async with asyncio.timeout(timeout):
                return await self.future
        except TimeoutError:
            raise DriverTimeoutError(f"{self._url}: waited {timeout:g} s in vain for {what}") from None


def _raise_refusal(status: DriverStatus) -> None:
    if status.status == "rejected" or status.raw.get("error") == "busy":
        raise DriverBusyError("busy", status.reason or "the driver is busy")
    if status.status == "error" and ("error" in status.raw or "command" not in status.raw):
        raise CommandRefusedError(
            str(status.raw.get("error", "unknown")), status.reason or "the driver gives no reason"
        )
