"""The driver's client for code without asyncio: plans, scripts, IPython.

It runs the asyncio client in its own thread, so it works inside and outside event loops, and several threads
can share it.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator
from pathlib import Path
from typing import Any, Self, TypeVar

from stddaq.client.async_driver import COMMAND_TIMEOUT_S, REPAIR_TIMEOUT_S, AsyncDriverClient
from stddaq.client.connection import CONNECT_TIMEOUT_S
from stddaq.client.errors import ConnectionLostError
from stddaq.client.event_loop import run_until_stopped
from stddaq.client.ownership import ForkedClientError, Ownership
from stddaq.client.status import DriverStatus
from stddaq.client.status_watcher import StatusWatcher
from stddaq.closing import Closing
from stddaq.wire.default_addresses import DEFAULT_URL

T = TypeVar("T")


class DriverClient(Closing):
    """A connection to one driver. Use it as a context manager; all methods are safe to call from any thread.

    The methods are those of `AsyncDriverClient` and raise the same errors.
    """

    def __init__(self, url: str = DEFAULT_URL, *, token: str | None = None, reconnect: bool = False) -> None:
        """Take the arguments of `AsyncDriverClient`."""
        self._client = AsyncDriverClient(url, token=token, reconnect=reconnect)
        self.url = self._client.url
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._ownership: Ownership | None = None
        # A handler of signals may use the client while its thread does.
        self._guard = threading.RLock()

    def connect(self, timeout: float = CONNECT_TIMEOUT_S) -> Self:
        """Connect and receive the first status. Raise `DriverUnreachableError`, `DriverNotAllowedError`."""
        with self._guard:
            if self._loop is None:
                self._loop = loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=run_until_stopped, args=(loop,), name=f"client of {self.url}", daemon=True
                )
                self._thread.start()
                client = self._client
                self._ownership = Ownership(self, self.url, lambda: _end(client, loop))
        try:
            self._call(self._client.connect(timeout))
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """Disconnect. A run in progress continues."""
        with self._guard:
            thread, ownership = self._thread, self._ownership
            self._loop = self._thread = self._ownership = None
        if thread is None or ownership is None:
            return
        ownership.release()
        thread.join()

    def __enter__(self) -> Self:
        return self.connect()

    @property
    def latest(self) -> DriverStatus:
        """The latest status. Raise `ConnectionLostError`."""
        return self._client.latest

    def start(self, path: str | Path, *, timeout: float = COMMAND_TIMEOUT_S, **fields: Any) -> DriverStatus:
        """Start a run; its files are written into the directory `path`, as the driver sees it.

        `fields` are those of `stddaq.wire.driver_messages.StartCommand`: `n_image`, `file_prefix`,
        `writer_id`, `start_id`; with stddaq's driver also `overwrite`, `strict`, `end_on_restart`,
        `first_image_timeout`, `nexus`, `metadata`.
        Return the status of the admitted run, which `wait_until_ready` and `wait_until_saved` then follow.
        Raise `CommandRefusedError` with the driver's reason (`DriverBusyError` during another run),
        `DriverTimeoutError`, `ConnectionLostError`.
        """
        return self._call(self._client.start(path, timeout=timeout, **fields))

    def check(self, path: str | Path, *, timeout: float = COMMAND_TIMEOUT_S, **fields: Any) -> DriverStatus:
        """Return whether `start` with the same arguments would be admitted; see `AsyncDriverClient.check`.

        Raise `CommandRefusedError`, `UnsupportedError`, `DriverTimeoutError`, `ConnectionLostError`.
        """
        return self._call(self._client.check(path, timeout=timeout, **fields))

    def annotate(self, *, timeout: float = COMMAND_TIMEOUT_S, **fields: Any) -> DriverStatus:
        """Add metadata to the run that is being recorded; see `AsyncDriverClient.annotate`.

        Raise `CommandRefusedError`, `UnsupportedError`, `DriverTimeoutError`, `ConnectionLostError`.
        """
        return self._call(self._client.annotate(timeout=timeout, **fields))

    def stop(self, timeout: float = COMMAND_TIMEOUT_S) -> DriverStatus:
        """End the run, in any state; `wait_until_saved` waits for its files.

        Raise `DriverTimeoutError`, `ConnectionLostError`.
        """
        return self._call(self._client.stop(timeout))

    def status(self, timeout: float = COMMAND_TIMEOUT_S) -> DriverStatus:
        """Return a status newer than this call. Raise `DriverTimeoutError`, `ConnectionLostError`."""
        return self._call(self._client.status(timeout))

    def last_result(self, timeout: float = COMMAND_TIMEOUT_S) -> dict[str, Any] | None:
        """Return the account of the last run: counts, lists of ids, files. None when there was no run.

        Raise `UnsupportedError` when the driver is not stddaq's, `DriverTimeoutError`, `ConnectionLostError`.
        """
        return self._call(self._client.last_result(timeout))

    def repair(self, timeout: float = REPAIR_TIMEOUT_S) -> list[dict[str, Any]]:
        """Repair the files of the last run that a killed writer did not close.

        The result is that of `AsyncDriverClient.repair`. Raise `DriverBusyError`, `UnsupportedError`,
        `DriverTimeoutError`, `ConnectionLostError`.
        """
        return self._call(self._client.repair(timeout))

    def watch(self) -> Iterator[DriverStatus]:
        """Return an endless iterator of statuses, from the latest on; see `AsyncDriverClient.watch`."""
        return self._iterate(self._client.watch)

    def watch_run(self, timeout: float | None = None) -> Iterator[DriverStatus]:
        """Return an iterator as `watch` does, which ends with `file_saved` or `error` of the current run.

        The current run is the one that this client started last, or else the one in progress.
        Raise `DriverError` when there is none. The iterator raises `DriverTimeoutError` when the run has
        not ended `timeout` seconds from now; it stays usable after a `KeyboardInterrupt`.
        """
        return self._iterate(lambda: self._client.watch_run(timeout))

    def _iterate(self, watch: Callable[[], StatusWatcher]) -> Iterator[DriverStatus]:
        async def make() -> StatusWatcher:
            return watch()

        return _Statuses(self._call, self._call(make()))

    def wait_for(
        self, condition: Callable[[DriverStatus], bool], timeout: float, what: str = "that status"
    ) -> DriverStatus:
        """Return the first status, from the latest on, for which `condition` is true.

        The client's own thread calls `condition`, which must not block. Raise `DriverTimeoutError` after
        `timeout` seconds, naming `what`; `ConnectionLostError`.
        """
        return self._call(self._client.wait_for(condition, timeout, what))

    def wait(self, states: Iterable[str], timeout: float) -> DriverStatus:
        """Wait until the driver is in one of `states`. Raise `DriverTimeoutError`, `ConnectionLostError`."""
        return self._call(self._client.wait(states, timeout))

    def wait_until_ready(self, timeout: float) -> DriverStatus:
        """Wait until the current run (see `watch_run`) records every image that is published from now on.

        Raise `RunFailedError` when it fails before, `DriverTimeoutError`, `ConnectionLostError`.
        """
        return self._call(self._client.wait_until_ready(timeout))

    def wait_until_saved(self, timeout: float) -> DriverStatus:
        """Wait until the files of the current run (see `watch_run`) are closed.

        Raise `RunFailedError` when it ended in `error`, `DriverTimeoutError`, `ConnectionLostError`.
        """
        return self._call(self._client.wait_until_saved(timeout))

    def _call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the client's thread and return its result here."""
        try:
            future = self._submit(coroutine)
        except (ConnectionLostError, ForkedClientError):
            coroutine.close()
            raise
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise ConnectionLostError(f"{self.url}: this client was closed") from None
        except BaseException:
            future.cancel()  # Ctrl-C ends the wait here, so end it in the client's thread, too.
            raise

    def _submit(self, coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        # A loop that `close` of another thread has stopped would never run the coroutine.
        with self._guard:
            loop, ownership = self._loop, self._ownership
            if loop is None or ownership is None:
                raise ConnectionLostError(f"{self.url}: this client is not connected")
            ownership.check()
            return asyncio.run_coroutine_threadsafe(coroutine, loop)


def _end(client: AsyncDriverClient, loop: asyncio.AbstractEventLoop) -> None:
    """Make the loop disconnect and end. Do not wait for it."""
    closing = client.close()
    try:
        future = asyncio.run_coroutine_threadsafe(closing, loop)
    except RuntimeError:  # The loop has ended.
        closing.close()
        return
    future.add_done_callback(lambda _: loop.call_soon_threadsafe(loop.stop))


class _Statuses:
    """Iterates over a watcher in the client's thread. Not a generator: Ctrl-C would end that."""

    def __init__(
        self, call: Callable[[Coroutine[Any, Any, DriverStatus]], DriverStatus], watcher: StatusWatcher
    ) -> None:
        self._call, self._watcher = call, watcher

    def __iter__(self) -> _Statuses:
        return self

    def __next__(self) -> DriverStatus:
        try:
            return self._call(self._watcher.__anext__())
        except StopAsyncIteration:
            raise StopIteration from None
