"""The detector as a BEC device: staged, started, triggered, completed, stopped by BEC's device server.

BEC calls the device in a few threads that all devices share, and stops it in the thread that delivers all
messages. So every step runs in the device's own event loop, and BEC receives a Status of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from bec_lib.alarm_handler import Alarms
from bec_lib.logger import bec_logger
from bec_lib.messages import ErrorInfo
from ophyd import Component, Kind, Signal
from ophyd_devices import FileEventSignal, PreviewSignal, ProgressSignal, PSIDeviceBase
from ophyd_devices.utils.psi_device_base_utils import StatusBase

from stddaq.client import DEFAULT_URL, DriverClient
from stddaq.client.address import split_token
from stddaq.client.errors import DriverError
from stddaq.files.nexus import DATA
from stddaq.text import mismatch
from stddaq_bec.preview import Preview, binned
from stddaq_bec.recording import SETTLE_TIMEOUT_S, Recording
from stddaq_bec.scan import ScanFiles, ScanImages
from stddaq_ophyd.core.errors import AcquisitionError, AcquisitionStoppedError
from stddaq_ophyd.core.loop_thread import LoopThread

if TYPE_CHECKING:
    from bec_lib.devicemanager import ScanInfo

    from stddaq.client.live_stream import LiveImage

# BEC handles each progress message by itself.
PROGRESS_PERIOD_S = 0.1
# A configuration that is reloaded waits this long for the end of a run.
DESTROY_TIMEOUT_S = 10.0

logger = bec_logger.logger


class StdDaqCamera(PSIDeviceBase):
    """A detector whose images a std_daq driver records, a run for each scan.

    A subclass may have a component `camera`, which takes the images of a software trigger
    (`stddaq_ophyd.core.camera.Camera`). Without it, the images of a trigger are the next ones that arrive.
    """

    USER_ACCESS: ClassVar = ["driver_state", "set_live_stream"]

    n_images = Component(Signal, value=0, kind=Kind.hinted, doc="images of the scan recorded so far")
    n_bad = Component(
        Signal, value=0, kind=Kind.normal, doc="images of the scan that are damaged or not complete"
    )
    file_event = Component(FileEventSignal, name="file_event", doc="the file that leads to the images")
    progress = Component(ProgressSignal, name="progress", doc="recorded images of those expected")
    preview = Component(PreviewSignal, name="preview", ndim=2, doc="the newest image of the live stream")

    def __init__(
        self,
        prefix: str = "",
        *,
        name: str,
        driver_url: str = DEFAULT_URL,
        live_stream: str | None = None,
        require_driver: bool = False,
        image_timeout: float = 10.0,
        exact_images: bool = False,
        read_root: str | None = None,
        write_root: str | None = None,
        start_options: dict[str, Any] | None = None,
        preview_period: float = 0.5,
        preview_pixels: int = 2**20,
        scan_info: ScanInfo | None = None,
        device_manager: Any = None,
        **kwargs: Any,
    ) -> None:
        """Take the keys of `deviceConfig`.

        `driver_url` may contain a token, `ws://any:TOKEN@host:8080`. `live_stream` is the address of the
        previews, `tcp://host:port`. The device loads without its driver unless `require_driver` is set.
        `image_timeout` is in seconds, beyond exposure and readout. With `exact_images` a scan that the
        hardware triggers must give all the images that BEC expects. The driver sees BEC's directory
        `read_root` as `write_root`. `start_options` are further fields of the driver's `start`, like
        `writer_id`. A preview comes every `preview_period` seconds at most, binned to `preview_pixels`.
        """
        if (read_root is None) != (write_root is None):
            raise ValueError(mismatch(name, "both read_root and write_root, or neither", "one of them"))
        # Messages show the URL, but never the token.
        self.driver_url, self._token = split_token(driver_url, None)
        self._live_stream = live_stream
        self._preview_period, self._preview_pixels = preview_period, preview_pixels
        self._require_driver = require_driver
        self._image_timeout, self._is_exact = image_timeout, exact_images
        self._read_root = None if read_root is None else Path(read_root)
        self._write_root = None if write_root is None else Path(write_root)
        self._start_options = dict(start_options or {})
        self._loop = LoopThread(f"recording of {name}")
        self._preview: Preview | None = None
        self._images: ScanImages | None = None
        self._files: ScanFiles | None = None
        self._recording: Recording | None = None
        self._n_triggered = 0
        self._shown_at = 0.0
        super().__init__(prefix, name=name, scan_info=scan_info, device_manager=device_manager, **kwargs)
        self._is_preview_sent = threading.Event()
        self._is_preview_sent.set()
        # ophyd calls subscribers one after the other.
        self.preview.subscribe(lambda **_: self._is_preview_sent.set(), run=False)

    # Loaded and unloaded by BEC.

    def on_connected(self) -> None:
        """Start the previews. Raise `DriverError` when the driver is required and cannot be reached."""
        if self._require_driver:
            with DriverClient(self.driver_url, token=self._token):
                pass
        self.set_live_stream(self._live_stream)

    def destroy(self) -> None:
        """End the run and all threads."""
        self.set_live_stream(None)
        if self._recording is not None and not self._recording.is_over:
            # A driver that hangs does not keep a configuration from being loaded.
            with contextlib.suppress(TimeoutError):
                self._loop.submit(_stop(self._recording)).exception(DESTROY_TIMEOUT_S)
        self._loop.close()
        super().destroy()

    # The steps of a scan.

    def on_stage(self) -> None:
        """Find out where the files of the scan go. Raise `AcquisitionError` when that is not possible."""
        message = self.scan_info.msg
        if message is None:
            raise AcquisitionError(mismatch(f"{self.name}: stage", "a scan of BEC", "none"))
        self._images = ScanImages.of(message)
        path = Path(self.file_utils.get_full_path(scan_status_msg=message, name=self.name))
        self._files = ScanFiles.beside(path, self._read_root, self._write_root, self.name)
        self._n_triggered = 0

    def on_pre_scan(self) -> StatusBase | None:
        """Start the run. The Status is done when no image that is published from then on can be missed."""
        if self._files is None or self._images is None:
            return None  # BEC calls every device, staged or not.
        options = dict(self._start_options)
        if self._is_exact and self._images.is_hardware_triggered:
            options["n_image"] = self._images.expected
        recording = Recording(
            self.name,
            self.driver_url,
            self._token,
            self._files,
            options=options,
            camera=getattr(self, "camera", None),
            on_change=partial(self._show, self._images.expected),
        )
        previous, self._recording = self._recording, recording
        return self._submit(self._start(previous, recording))

    def on_kickoff(self) -> StatusBase | None:
        """Start the run, unless `pre_scan` did."""
        return self.on_pre_scan() if self._recording is None else None

    def on_trigger(self) -> StatusBase:
        """Take the images of a point. The Status is done when they are recorded and readable."""
        recording, images = self._recording, self._images
        if recording is None or images is None:
            raise AcquisitionError(mismatch(f"{self.name}: trigger", "a run, which pre_scan starts", "none"))
        n = images.per_trigger
        self._n_triggered += n
        return self._submit(self._take(recording, n, n * images.seconds + self._image_timeout))

    def on_complete(self) -> StatusBase | None:
        """End the run when its images are there. The Status is done when the files are closed."""
        recording, images = self._recording, self._images
        if recording is None or images is None:
            return None  # BEC calls every device, staged or not.
        return self._submit(self._complete(recording, images))

    def on_unstage(self) -> StatusBase | None:
        """Leave the driver idle. The Status is done when it is."""
        recording, self._recording = self._recording, None
        self._files = self._images = None
        if recording is None or recording.is_over:
            return None
        return self._submit(_stop(recording))

    def stop(self, *, success: bool = False) -> None:
        """End the run, and fail what waits for images. Return at once; it may be called at any time."""
        # The base class would stop components here, in the thread that delivers BEC's messages.
        self.stopped = True
        if (recording := self._recording) is not None:
            self._loop.submit(_request_stop(recording))

    # In the event loop.

    def _submit(self, step: Coroutine[Any, Any, None]) -> StatusBase:
        # Not DeviceStatus, which stops the device when it fails: the recording ends itself.
        status = StatusBase(obj=self)
        self._loop.submit(step).add_done_callback(partial(_settle, status, self.name))
        return status

    async def _start(self, previous: Recording | None, recording: Recording) -> None:
        if previous is not None:
            await _stop(previous)
        await recording.start()
        self._put_file_event(recording, is_done=False)

    async def _take(self, recording: Recording, n_images: int, timeout: float) -> None:
        await recording.take(n_images, timeout)
        # BEC reads the device after the trigger.
        self._put_counts(recording)

    async def _complete(self, recording: Recording, images: ScanImages) -> None:
        waits = images.is_hardware_triggered and not self._n_triggered
        is_exact = waits and self._is_exact
        if waits:
            timeout = self._image_timeout if is_exact else SETTLE_TIMEOUT_S
            await recording.wait_for_total(images.expected, images.seconds + timeout)
        await recording.end()
        recording.raise_error()
        if is_exact and recording.n_images < images.expected:
            expected = f"{images.expected} images"
            raise AcquisitionError(mismatch(f"{self.name}: complete", expected, str(recording.n_images)))

    def _show(self, n_expected: int, recording: Recording) -> None:
        """Show how far a run is."""
        now = time.monotonic()
        if not recording.is_over and now - self._shown_at < PROGRESS_PERIOD_S:
            return
        self._shown_at = now
        self._put_counts(recording)
        if not recording.was_ready:
            return
        value, is_over = recording.n_images, recording.is_over
        self.progress.put(value=value, max_value=max(n_expected, value, 1), done=is_over)
        if is_over:
            self._put_file_event(recording, is_done=True)
            if recording.failed_unasked:
                self._warn(str(recording.error))
            elif recording.n_bad:
                self._warn(
                    f"{self.name}: {recording.n_bad} of {value} images are bad: {recording.files.master}"
                )

    def _warn(self, text: str) -> None:
        """Raise an alarm that does not end the scan."""
        logger.warning(text)
        if self.device_manager is None:
            return
        info = ErrorInfo(
            error_message=text, compact_error_message=text, exception_type="Warning", device=self.name
        )
        raise_alarm = self.device_manager.connector.raise_alarm
        # It waits for Redis.
        asyncio.get_running_loop().run_in_executor(None, raise_alarm, Alarms.WARNING, info)

    def _put_counts(self, recording: Recording) -> None:
        self.n_images.put(recording.n_images)
        self.n_bad.put(recording.n_bad)

    def _put_file_event(self, recording: Recording, *, is_done: bool) -> None:
        is_good = recording.error is None and not recording.is_stopped and not recording.n_bad
        self.file_event.put(
            file_path=str(recording.files.link),
            done=is_done,
            successful=is_good,
            hinted_h5_entries={"data": DATA},
        )

    def _show_preview(self, image: LiveImage) -> None:
        # Previews do not accumulate while BEC waits for Redis.
        if not self._is_preview_sent.is_set():
            return
        pixels = binned(image.pixels, self._preview_pixels)
        self._is_preview_sent.clear()
        try:
            self.preview.put(pixels, metadata={"image_id": image.image_id})
        except BaseException:
            self._is_preview_sent.set()
            raise

    # What users may call.

    def driver_state(self) -> dict[str, Any]:
        """Return what the driver is doing: `status`, `count`, `reason`; `unreachable` without a driver."""
        try:
            with DriverClient(self.driver_url, token=self._token) as client:
                latest = client.latest
        except DriverError as error:
            return {"status": "unreachable", "count": None, "reason": str(error)}
        return {"status": latest.status, "count": latest.count, "reason": latest.reason}

    def set_live_stream(self, address: str | None) -> None:
        """Show previews of the live stream at `address`, `tcp://host:port`; none without an address."""
        if self._preview is not None:
            self._preview.close()
            self._preview = None
        if address:
            self._preview = Preview(address, self._preview_period, self._show_preview)


async def _request_stop(recording: Recording) -> None:
    recording.stop()


async def _stop(recording: Recording) -> None:
    if not recording.is_over:
        recording.stop()
    await recording.end()


def _settle(status: StatusBase, device: str, step: Future[None]) -> None:
    if step.cancelled():
        status.set_exception(AcquisitionStoppedError(f"{device}: the device was removed from BEC"))
    elif (error := step.exception()) is not None:
        status.set_exception(error)
    else:
        status.set_finished()
