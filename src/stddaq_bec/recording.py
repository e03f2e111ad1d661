"""One run of the driver for one scan: started, followed point by point, ended.

Everything runs in the event loop of the device, so that nothing that BEC calls has to wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

from stddaq.client import AsyncDriverClient, DriverStatus
from stddaq.client.errors import (
    CommandRefusedError,
    ConnectionLostError,
    DriverBusyError,
    DriverError,
    DriverTimeoutError,
    RunFailedError,
)
from stddaq.errors import StdDaqError
from stddaq.text import command_line, mismatch
from stddaq_bec.scan import ScanFiles
from stddaq_ophyd.core.camera import Camera, CameraControl, Exposure
from stddaq_ophyd.core.errors import AcquisitionError, AcquisitionStoppedError
from stddaq_ophyd.core.run_owner import RunOwner, is_orphan

# Longer than the driver itself waits for its writers and files.
READY_TIMEOUT_S = 30.0
# Closing large files on a slow file system takes this long.
CLOSE_TIMEOUT_S = 120.0
IDLE_TIMEOUT_S = 5.0
# Images that were announced before the last trigger's answer arrive within this time.
SETTLE_TIMEOUT_S = 1.0


class Recording:
    """One run of the driver. All methods are called in one event loop.

    Attributes:
        files: where the files go.
        n_images: images recorded so far.
        n_bad: images that are damaged, overwritten, failed or skipped.
        was_ready: the run was started.
        is_stopped: the run was stopped before its scan was complete.
        error: why the run failed, the first reason only.
        failed_unasked: the failure came between the steps of the scan.
    """

    def __init__(
        self,
        device: str,
        url: str,
        token: str | None,
        files: ScanFiles,
        *,
        options: Mapping[str, Any],
        camera: Camera | None,
        on_change: Callable[[Recording], None],
    ) -> None:
        """`device` begins every message, `options` are further fields of the driver's `start`.

        `on_change` is called in the loop for each status, and when the run has ended.
        """
        self.files = files
        self.n_images = self.n_bad = 0
        self.was_ready = self.is_stopped = self.failed_unasked = False
        self.error: AcquisitionError | None = None
        self._device, self._url, self._token = device, url, token
        self._options, self._on_change = dict(options), on_change
        self._camera = CameraControl(camera, device)
        self._client = AsyncDriverClient(url, token=token)
        self._opening = asyncio.Lock()
        self._is_started = False
        self._run_id: str | None = None
        self._owner: RunOwner | None = None
        self._following: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None

    @property
    def is_over(self) -> bool:
        """Return whether the run has ended, and its files are closed."""
        return self._ending is not None and self._ending.done()

    async def start(self) -> None:
        """Start the run; from the return on every image that is published is recorded.

        Raise `AcquisitionError` with the driver's reason, and leave nothing open then.
        """
        try:
            async with self._opening:
                await self._open()
        except (StdDaqError, OSError) as error:
            failure = self._failure("cannot start a run", self._first_reason() or error)
            await self.end()
            raise failure from error

    async def _open(self) -> None:
        self._check_stopped()
        await self._camera.clear()
        await self._client.connect()
        self._check_stopped()
        await self._send_start()
        self._check_stopped()
        self._note(await self._client.wait_until_ready(READY_TIMEOUT_S))
        self._check_stopped()
        await asyncio.to_thread(self.files.write_link)
        self._check_stopped()
        self.was_ready = True
        self._following = asyncio.create_task(self._follow())

    async def _send_start(self) -> None:
        directory, fields = self.files.directory, {"file_prefix": self.files.prefix, **self._options}
        try:
            status = await self._client.start(directory, **fields)
        except DriverBusyError:
            if not await self._end_orphan():
                raise
            status = await self._client.start(directory, **fields)
        except DriverTimeoutError:
            self._is_started = True  # The driver may have started it.
            raise
        self._is_started, self._run_id = True, status.run_id
        if self._run_id is not None:
            self._owner = RunOwner(self._url, self._run_id)

    async def _end_orphan(self) -> bool:
        """End the run of a device that does not exist any more. Return whether there was one."""
        run_id = (await self._client.status()).run_id
        if run_id is None or not is_orphan(self._url, run_id):
            return False
        await self._client.stop()
        await self._client.wait(("idle",), CLOSE_TIMEOUT_S)
        return True

    async def take(self, n_images: int, timeout: float) -> None:
        """Fire the camera, and wait until `n_images` more are recorded and readable.

        Raise `AcquisitionError` when they are not within `timeout` seconds, and end the run then.
        """
        self.raise_error()
        try:
            before = (await self._client.status()).count or 0
            exposure = await self._camera.fire(n_images)
            await self._wait_for(before, n_images, timeout, exposure)
        except (StdDaqError, OSError) as error:
            failure = self._failure("the images of a trigger are not recorded", self._first_reason() or error)
            self.stop()
            raise failure from error

    async def _wait_for(self, before: int, n_images: int, timeout: float, exposure: Exposure) -> None:
        def is_decided(status: DriverStatus) -> bool:
            self._note(status)
            return (
                self.n_images >= before + n_images
                or self.is_stopped
                or not self._is_live(status)
                or exposure.failure() is not None
            )

        expected = f"{n_images} images within {timeout:g} s"
        try:
            status = await self._client.wait_for(is_decided, timeout)
        except DriverTimeoutError:
            n = self.n_images - before
            raise AcquisitionError(mismatch("trigger", expected, str(n), "does the camera run?")) from None
        self._check_stopped()
        if self.n_images >= before + n_images:
            return
        if not self._is_live(status):
            await self._check_end()
        raise AcquisitionError(f"the camera failed: {exposure.failure()}")

    async def wait_for_total(self, n_images: int, timeout: float) -> None:
        """Wait until the run has `n_images`, has ended, or has no new image for `timeout` seconds."""
        while self.n_images < n_images and not self.is_stopped:
            before = self.n_images

            def is_decided(status: DriverStatus, before: int = before) -> bool:
                self._note(status)
                return self.n_images > before or self.is_stopped or not self._is_live(status)

            try:
                await self._client.wait_for(is_decided, timeout)
            except DriverError:  # The end of the run reports a lost connection.
                return
            if self.n_images == before:
                return

    def raise_error(self) -> None:
        """Raise why the run failed, or that it was stopped."""
        if self.error is not None:
            raise self.error
        if self.is_stopped:
            raise AcquisitionStoppedError(f"{self._device}: stopped after {self.n_images} images")

    def stop(self) -> None:
        """End the run because its scan does not continue. Return at once; `end` waits."""
        self.is_stopped = True
        self._camera.cancel()
        self._start_ending()

    async def end(self) -> None:
        """End the run, and wait until the driver is idle and all files are closed.

        A failure is in `error`.
        """
        await asyncio.shield(self._start_ending())

    def _start_ending(self) -> asyncio.Task[None]:
        if self._ending is None:
            self._ending = asyncio.create_task(self._end())
            # At the end, not within the task: then the run is over.
            self._ending.add_done_callback(lambda _: self._on_change(self))
        return self._ending

    async def _end(self) -> None:
        try:
            await self._end_run()
        except ConnectionLostError as error:
            self._failure("the connection to the driver is lost", error)
            await self._end_by_new_connection()
        except StdDaqError as error:
            self._failure("the run failed", error)
            with contextlib.suppress(DriverError):
                await self._client.wait(("idle",), IDLE_TIMEOUT_S)
        finally:
            if self._following is not None:
                self._following.cancel()
            await self._client.close()
            if self._owner is not None:
                self._owner.release()
        if self.is_stopped:
            await self._stop_camera()

    async def _stop_camera(self) -> None:
        try:
            await self._camera.stop()
        except AcquisitionError as error:
            self._failure("the run was stopped", error)

    async def _end_run(self) -> None:
        # A start in progress notices the stop at its next step, and its own step ends by the stop.
        if self._is_started and self._is_live(self._client.latest):
            await self._client.stop()
        async with self._opening:
            if not self._is_started:
                return
            if self._is_live(self._client.latest):
                await self._client.stop()
            elif not self.is_stopped:
                await self._check_end()
            self._note(await self._client.wait_until_saved(CLOSE_TIMEOUT_S))
            await self._client.wait(("idle",), IDLE_TIMEOUT_S)
        if self._run_id is None and self.n_images:
            await asyncio.to_thread(self._make_master_file)

    def _make_master_file(self) -> None:
        """Make the file that a driver in C++ does not make, in a process: HDF5 may fail there."""
        directory, prefix = self.files.master.parent, self.files.prefix
        command = [sys.executable, "-m", "stddaq", "aggregate", str(directory), "--prefix", prefix]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=CLOSE_TIMEOUT_S)
        except subprocess.CalledProcessError as error:
            raise AcquisitionError(f"the master file cannot be made: {error.stderr.strip()}") from error
        except subprocess.TimeoutExpired as error:
            raise AcquisitionError(f"the master file was not made within {error.timeout:g} s") from error

    async def _end_by_new_connection(self) -> None:
        """Connect again: the driver may still be there, with the run."""
        with contextlib.suppress(DriverError):
            async with AsyncDriverClient(self._url, token=self._token) as client:
                if client.latest.is_busy and client.latest.run_id == self._run_id:
                    await client.stop()
                    await client.wait(("idle",), CLOSE_TIMEOUT_S)

    async def _follow(self) -> None:
        """Report each status until the run ends."""
        try:
            async for status in self._client.watch_run():
                self._note(status)
                self._on_change(self)
            if self._ending is None:
                await self._check_end()
        except StdDaqError as error:
            if self._ending is None:
                self._failure("the run ended", error)
                self.failed_unasked = True
                self.stop()

    async def _check_end(self) -> None:
        """Raise why the run ended by itself, unless it had a number of images."""
        await self._client.wait_until_saved(CLOSE_TIMEOUT_S)
        if "n_image" not in self._options:
            raise RunFailedError("another client ended the run")

    def _note(self, status: DriverStatus) -> None:
        if status.run_id == self._run_id and status.status != "idle":
            self.n_images = max(self.n_images, status.count or 0)
            self.n_bad = max(self.n_bad, status.n_bad or 0)

    def _is_live(self, status: DriverStatus) -> bool:
        return status.is_busy and status.run_id == self._run_id

    def _check_stopped(self) -> None:
        if self.is_stopped:
            raise AcquisitionStoppedError(f"stopped after {self.n_images} images")

    def _first_reason(self) -> AcquisitionError | None:
        """Return why the run ended before the present step failed: how that failed does not matter then."""
        if self.error is not None:
            return self.error
        return AcquisitionStoppedError(f"stopped after {self.n_images} images") if self.is_stopped else None

    def _failure(self, what: str, cause: StdDaqError | OSError) -> AcquisitionError:
        """Return the error to raise, and keep it if it is the first."""
        if isinstance(cause, AcquisitionError) and cause is self.error:
            return cause
        kind = AcquisitionStoppedError if isinstance(cause, AcquisitionStoppedError) else AcquisitionError
        where = f"{self.files.directory}/{self.files.prefix}*.h5"
        error = kind(f"{self._device}: {what}: {self._words(cause)}; files {where}, driver {self._url}")
        self.error = self.error or error
        return error

    def _words(self, cause: StdDaqError | OSError) -> str:
        """Return the cause, with what the user can do about it."""
        if isinstance(cause, DriverBusyError):
            return (
                f"{cause}; {command_line('stddaq', 'stop', '--url', self._url)} ends the run of another user"
            )
        if isinstance(cause, CommandRefusedError) and cause.error_type == "file_exists":
            return f"{cause.reason}; BEC's scan numbers restart when its Redis loses its data"
        if isinstance(cause, CommandRefusedError | RunFailedError):
            return cause.reason
        return str(cause).removeprefix(f"{self._device}: ") or type(cause).__name__
