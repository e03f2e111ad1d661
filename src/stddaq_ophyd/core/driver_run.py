"""One run of a driver as a device sees it: started, followed to a number of images, ended.

It works with the stddaq driver, whose files can be read while they grow, and with a std_det_driver (C++),
which reports only `status`, `count` and `reason`, and whose files can be read when they are closed.
"""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from stddaq.client import DriverStatus, RunFailedError
from stddaq.client.errors import (
    CommandRefusedError,
    ConnectionLostError,
    DriverBusyError,
    DriverError,
    DriverTimeoutError,
    DriverUnreachableError,
    UnsupportedError,
)
from stddaq.errors import FileLayoutError, StdDaqError
from stddaq.files.growing_run import GrowingFiles
from stddaq.files.names import find_run
from stddaq.files.opening import open_file
from stddaq.files.raw_rows import RawRows, raw_file_of
from stddaq.text import command_line, mismatch
from stddaq_ophyd.core.camera import Exposure
from stddaq_ophyd.core.driver_group import Drivers, first_of, join, why_lost
from stddaq_ophyd.core.errors import AcquisitionError, AcquisitionStoppedError
from stddaq_ophyd.core.paths import PathInfo
from stddaq_ophyd.core.run_counts import RunCounts
from stddaq_ophyd.core.run_owner import RunOwner
from stddaq_ophyd.core.worker import Worker

_log = logging.getLogger(__name__)

# Longer than the driver itself waits for its writers and files.
READY_TIMEOUT_S = 30.0
# A driver sends its status ten times a second.
CONNECT_TIMEOUT_S = 5.0
# Closing large files on a slow file system takes this long.
CLOSE_TIMEOUT_S = 120.0
IDLE_TIMEOUT_S = 5.0

# Called with the number of images that came of those waited for, and the counts of the run.
OnProgress = Callable[[int, RunCounts], None]
# Returns what the run is annotated with before it ends: `metadata`, `nexus`.
LateMetadata = Callable[[], Mapping[str, dict[str, Any]]]


def nothing_late() -> Mapping[str, dict[str, Any]]:
    """Return no metadata."""
    return {}


class DriverRun:
    """One run of a driver, or of several. Use it in one event loop; `cancel` may be called from any thread.

    Attributes:
        growing_files: the raw files while they grow; None when they cannot be read before they are closed.
        raw_files: the raw files of writer 0, 1, ... as this process sees them; known while the run is live,
            or when it has ended.
        n_recorded: images of the run, as far as the driver reported them.
        error: why the run failed, the first reason only.
    """

    def __init__(
        self,
        drivers: Drivers,
        paths: PathInfo,
        options: Mapping[str, Any],
        device: str,
        files: Worker,
        late: LateMetadata = nothing_late,
    ) -> None:
        """`options` are further fields of the driver's `start`; `device` begins every message; the thread of
        `files` reads files."""
        self.paths = paths
        self._device, self._options = device, dict(options)
        self._drivers, self._client = drivers, drivers.client()
        self.url = self._client.url
        self._files, self._late = files, late
        self._is_cancelled = False
        self._status: DriverStatus | None = None
        self._run_id: str | None = None
        self._owners: list[RunOwner] = []
        self._is_open = False
        self.growing_files: GrowingFiles | None = None
        self.raw_files: tuple[Path, ...] = ()
        self.image_shape: tuple[int, int] | None = None
        self.dtype: str | None = None
        self.n_recorded = 0
        self.error: AcquisitionError | None = None

    @property
    def is_open(self) -> bool:
        """Return whether the run was started and not closed."""
        return self._is_open

    @property
    def is_live(self) -> bool:
        """Return whether the files can be read while they grow."""
        return self.growing_files is not None

    @property
    def state(self) -> str:
        """Return the last state of the driver, for messages."""
        return self._status.status if self._status else "in an unknown state"

    @property
    def where(self) -> str:
        """Return directory and names of the files, for messages."""
        return f"{self.paths.directory}/{self.paths.prefix}*.h5"

    async def open(self) -> None:
        """Start the run; from the return on every image that is published is recorded.

        Raises `AcquisitionError` with the driver's reason, and leaves nothing open then.
        """
        try:
            await self._client.connect(CONNECT_TIMEOUT_S)
            await self._start()
            self._status = await self._client.wait_until_ready(READY_TIMEOUT_S)
            await self._files.run(self._read_layout)
        except BaseException as error:
            reason = self._failure("cannot start a run", error)
            await self.close()
            if isinstance(error, StdDaqError):
                raise reason from error
            raise

    async def _start(self) -> None:
        try:
            self._status = await self._send_start()
        except DriverBusyError:
            if not await self._drivers.end_orphans(self._device, CLOSE_TIMEOUT_S):
                raise
            self._status = await self._send_start()
        except DriverTimeoutError:
            self._is_open = True  # The driver may have started it.
            raise
        self._run_id = self._status.run_id
        self._is_open = True
        self._owners = self._drivers.owners(self._status)

    async def _send_start(self) -> DriverStatus:
        return await self._client.start(self.paths.directory, file_prefix=self.paths.prefix, **self._options)

    def _read_layout(self) -> None:
        """Read what the raw files hold, and find out whether they can be read while they grow."""
        assert self._status is not None
        run_id, names = first_of(self._status)
        files = [self.paths.read_directory / Path(name).name for name in names]
        if run_id is None or not files:
            return
        for path in files:
            raw = self._read_raw_file(path)
            if raw is None or raw.origin.run_id != run_id:
                return
            self.image_shape, self.dtype = raw.image_shape, raw.dtype.str
        self.raw_files, self.growing_files = tuple(files), GrowingFiles(files)

    def _read_raw_file(self, path: Path) -> RawRows | None:
        """Return what the file holds, or None when it cannot be read while it grows."""
        try:
            with open_file(path, allow_unclosed=True) as opened:
                return raw_file_of(path, opened)
        except FileLayoutError as error:
            if path.exists():
                return None
            raise AcquisitionError(
                mismatch(
                    "read_directory",
                    f"the directory in which the driver writes {self.where}",
                    f"{path.parent} without {path.name}",
                )
            ) from error

    async def counts(self) -> RunCounts:
        """Return the counts of this moment. Raises `AcquisitionError` when the run has ended."""
        try:
            self._status = await self._client.status() if self._run_id else self._client.latest
        except DriverError as error:
            raise self._failure("the connection to the driver is lost", error) from error
        if not self._is_this_run(self._status):
            raise self._failure("the run has ended", await self._reason_of_end())
        return RunCounts.of(self._status)

    async def latest_counts(self) -> RunCounts:
        """Return the counts of the latest status, which is up to 0.1 s old. Raises as `counts`."""
        try:
            latest = self._client.latest
        except DriverError:
            return await self.counts()
        return RunCounts.of(latest) if self._is_this_run(latest) else await self.counts()

    async def wait_for(
        self,
        n_images: int,
        before: RunCounts,
        timeout: float,
        exposure: Exposure,
        *,
        restart_on_progress: bool = False,
        on_progress: OnProgress = lambda n, counts: None,
    ) -> RunCounts:
        """Wait until `n_images` more than `before` are recorded, and readable if the run is live.

        `timeout` in seconds, for all images, or with `restart_on_progress` for each. Raises
        `AcquisitionError`, also when the `exposure` fails.
        """
        latest = before
        deadline = time.monotonic() + timeout
        n_recorded = 0

        def is_decided(status: DriverStatus) -> bool:
            nonlocal latest, deadline, n_recorded
            self._status = status
            if self._is_cancelled or not self._is_this_run(status) or exposure.failure():
                return True
            latest = RunCounts.of(status)
            self._note_recorded(status)
            n = before.n_recorded_since(status)
            if n > n_recorded:
                n_recorded = n
                if restart_on_progress:
                    deadline = time.monotonic() + timeout
                on_progress(min(n, n_images), latest)
            return n >= n_images

        while n_recorded < n_images:
            try:
                status = await self._client.wait_for(is_decided, max(0.0, deadline - time.monotonic()))
            except DriverTimeoutError:
                if time.monotonic() < deadline:
                    continue
                n = max(n_recorded, latest.n_images - before.n_images)
                each = ", each" if restart_on_progress else ""
                named = exposure.first_id
                first = f"; the first has id {named} according to the camera" if named is not None else ""
                raise self._failure(
                    f"expected {n_images} images{each} within {timeout:g} s, got {n}{first}"
                ) from None
            except DriverError as error:
                raise self._failure(f"recorded {n_recorded} of {n_images} images", error) from error
            if self._is_cancelled:
                raise AcquisitionStoppedError(
                    f"{self._device}: stopped, recorded {n_recorded} of {n_images} images to {self.where}"
                )
            if not self._is_this_run(status):
                why = await self._reason_of_end()
                raise self._failure(f"recorded {n_recorded} of {n_images} images", why)
            if n_recorded < n_images and (why := exposure.failure()) is not None:
                raise self._failure(f"recorded {n_recorded} of {n_images} images, the camera failed", why)
        return latest

    def _note_recorded(self, status: DriverStatus) -> None:
        self.n_recorded = max(self.n_recorded, RunCounts.of(status).n_images)

    def cancel(self) -> None:
        """Make `wait_for` raise `AcquisitionStoppedError`. Safe from any thread."""
        self._is_cancelled = True

    async def close(self) -> None:
        """End the run and wait until the driver is idle and the files are closed. Does not raise.

        A failure is in `error`, unless there was one before.
        """
        try:
            if self._is_open:
                await self._end()
        finally:
            self._is_open = False
            await self._client.close()
            for owner in self._owners:
                owner.release()

    async def discard(self) -> None:
        """End the run, and remove its files if no image came."""
        await self.close()
        if self.is_live and not self.n_recorded and self.error is None:
            await self._files.run(self._remove_files)

    def _remove_files(self) -> None:
        with contextlib.suppress(OSError):
            self._drivers.remove_files(self.paths)

    async def _end(self) -> None:
        try:
            if self._is_in_progress(self._client.latest):
                await self._annotate()
                await self._client.stop()
            self._status = await self._client.wait_until_saved(CLOSE_TIMEOUT_S)
            await self._client.wait(("idle",), IDLE_TIMEOUT_S)
        except ConnectionLostError as error:
            self._note("the connection to the driver is lost", error)
            await self._end_by_new_connection()
        except DriverError as error:
            self._note("the run failed", error)
            with contextlib.suppress(DriverError):
                await self._client.wait(("idle",), IDLE_TIMEOUT_S)
        if self._status is not None and self._status.run_id == self._run_id:
            self._note_recorded(self._status)
        if not self.raw_files:
            await self._find_files()
        if self._drivers.are_several:
            await self._join()

    async def _join(self) -> None:
        """Make the master file over the parts, also of a run that failed."""
        with contextlib.suppress(DriverError):
            account = await self._client.last_result()
            if account is not None and (why := await self._files.run(join, account, self.paths)):
                self._note("the parts of the run cannot be joined", StdDaqError(why))

    async def _annotate(self) -> None:
        """Add metadata that were not known at the start. A run does not fail for want of them."""
        late = self._late()
        # Apart, because a value of `nexus` may be refused.
        for name in sorted(name for name in late if late[name]):
            fields: dict[str, Any] = {name: late[name]}
            try:
                await self._client.annotate(**fields)
            except UnsupportedError:
                return  # Another driver, which keeps none.
            except DriverError as error:
                _log.warning("%s: %s of the run %s was not kept: %s", self._device, name, self.where, error)

    async def _end_by_new_connection(self) -> None:
        """Connect again: the driver may still be there, with the run."""
        if self._status is not None:
            await self._drivers.end_runs(self._status, CLOSE_TIMEOUT_S)

    async def _find_files(self) -> None:
        prefix = self._drivers.prefixes(self.paths.prefix)[0]
        try:
            run = await self._files.run(find_run, self.paths.read_directory, prefix)
            self.raw_files = run.raw
        except FileLayoutError as error:
            self._note("the files of the run are not there", error)

    def _is_in_progress(self, status: DriverStatus) -> bool:
        return status.is_busy and status.run_id == self._run_id

    def _is_this_run(self, status: DriverStatus) -> bool:
        """Whether the run is in progress, with all its parts."""
        return self._is_in_progress(status) and not why_lost(status)

    async def _reason_of_end(self) -> Exception | None:
        """Return why the run ended by itself, or lost a part."""
        if self._status is not None and (why := why_lost(self._status)):
            return StdDaqError(why)
        try:
            await self._client.wait_until_saved(CLOSE_TIMEOUT_S)
        except DriverError as error:
            return error
        return None

    def _note(self, what: str, cause: Exception) -> None:
        self.error = self.error or self._failure(what, cause)

    def _failure(self, what: str, cause: BaseException | None = None) -> AcquisitionError:
        """Return the error to raise, and keep it if it is the first."""
        advised = "" if self._drivers.are_several else self.url
        why = f": {_words(cause, advised)}" if cause is not None else ""
        error = AcquisitionError(
            f"{self._device}: {what}{why}; files {self.where}, driver {self.url} is {self.state}"
        )
        self.error = self.error or error
        return error


def _words(cause: BaseException, url: str) -> str:
    """Return the cause, with what the user can do about it if the `url` of the driver is given."""
    if url and isinstance(cause, DriverBusyError):
        return f"{cause}; {command_line('stddaq', 'stop', '--url', url)} ends the run of another user"
    if url and isinstance(cause, DriverUnreachableError):
        return f"{cause} {_up(url)} starts the services"
    if isinstance(cause, CommandRefusedError | RunFailedError):
        return cause.reason
    return str(cause) or type(cause).__name__


def _up(url: str) -> str:
    """Return the command that starts a driver at `url`."""
    port = re.search(r":(\d+)/*$", url)
    return command_line("stddaq", "up", "CONFIG", *(("--port", port[1]) if port else ()))
