"""The detector as a Bluesky device: stage, trigger, read, unstage; kickoff, complete, collect.

A thread of the device does what takes time, one step after the other, so that neither the RunEngine nor a
prompt waits for anything but the Status that it was given. What is recorded, and told of it, is the business
of `stddaq_ophyd.core`.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from bluesky.utils import NoReplayAllowed
from ophyd import Component, Device, Kind, Signal
from ophyd.signal import InternalSignal
from ophyd.status import DeviceStatus
from ophyd.utils import RedundantStaging

from stddaq.client import DEFAULT_URL, DriverClient
from stddaq.client.errors import DriverError
from stddaq.config import DetectorConfig
from stddaq_ophyd.camera import Camera, Trigger, as_camera
from stddaq_ophyd.core.documents import (
    AREA_DETECTOR_SPEC,
    Announcer,
    DatumAnnouncer,
    Document,
    ImageSource,
    StreamAnnouncer,
)
from stddaq_ophyd.core.driver_run import RunCounts
from stddaq_ophyd.core.errors import AcquisitionError
from stddaq_ophyd.core.paths import DirectoryPaths, PathProvider
from stddaq_ophyd.core.publication import Acquisition, Plan
from stddaq_ophyd.core.worker import Worker

# A program that ends with a run going on waits so long for the files.
EXIT_TIMEOUT_S = 10.0
S = TypeVar("S", bound="StepStatus")
DocumentKind = Literal["stream", "AD_HDF5", "STDDAQ_PUBLISHED", "STDDAQ_RAW"]


class StepStatus(DeviceStatus):
    """A Status of a step of a device; it says why it failed wherever it is shown."""

    def __init__(self, device: Device) -> None:
        # The device ends what is to be ended by itself.
        super().__init__(device, call_stop_on_failure=False)

    def __str__(self) -> str:
        state = f"failed: {self._exception}" if self._exception else "done" if self.done else "going on"
        return f"{type(self).__name__}({state})"

    __repr__ = __str__


class AcquisitionStatus(StepStatus):
    """A Status that tells how many of its images are recorded."""

    def __init__(self, device: Device, n_images: int) -> None:
        self._n_images, self._n = n_images, 0
        self._began = time.monotonic()
        super().__init__(device)

    def watch(self, func: Callable[..., Any]) -> None:
        """Call `func` with the number of images whenever it changes, as bluesky's progress bars expect."""
        self._watchers.append(func)
        self._tell(func)

    def progress(self, n: int) -> None:
        """Tell that `n` images are recorded."""
        self._n = n
        for watcher in tuple(self._watchers):
            self._tell(watcher)

    def _tell(self, watcher: Callable[..., Any]) -> None:
        elapsed = time.monotonic() - self._began
        left = self._n_images - self._n
        watcher(
            name=self.device.name,
            current=self._n,
            initial=0,
            target=self._n_images,
            unit="images",
            precision=0,
            fraction=left / self._n_images if self._n_images else 0.0,
            time_elapsed=elapsed,
            time_remaining=elapsed / self._n * left if self._n else None,
        )

    def _settled(self) -> None:
        if self._exception is None:
            self.progress(self._n_images)


class StdDaqDetector(Device):
    """A detector whose images the driver at `prefix` records.

    det = StdDaqDetector("ws://127.0.0.1:8080", name="det", paths="/data", trigger=camera.software_trigger)
    RE(count([det], 5))

    A subclass may have a component `camera` (see `stddaq_ophyd.camera`), which then takes the images, and a
    component `live_stream`.
    """

    n_images = Component(InternalSignal, value=0, kind=Kind.hinted, doc="images of this point, or flight")
    n_recorded = Component(InternalSignal, value=0, kind=Kind.hinted, doc="images since it was staged")
    n_bad = Component(
        InternalSignal,
        value=0,
        kind=Kind.hinted,
        doc="images since it was staged that are damaged, overwritten, not written or skipped",
    )
    images_per_trigger = Component(Signal, value=1, kind=Kind.config, doc="images of a point")
    exposure_time = Component(Signal, value=0.0, kind=Kind.config, doc="seconds for each image")
    margin = Component(
        Signal, value=5.0, kind=Kind.config, doc="seconds beyond the exposure in which images must come"
    )
    allow_bad = Component(Signal, value=0, kind=Kind.config, doc="1: points with lost images are accepted")
    stream = Component(
        Signal,
        value="",
        kind=Kind.omitted,
        doc="the stream that the next images belong to, to be set by plans that go back to an earlier stream",
    )
    image_height = Component(InternalSignal, value=0, kind=Kind.config, doc="pixels")
    image_width = Component(InternalSignal, value=0, kind=Kind.config, doc="pixels")
    pixel_type = Component(InternalSignal, value="", kind=Kind.config, doc="as numpy writes it, like <u2")
    bit_depth = Component(InternalSignal, value=0, kind=Kind.config, doc="bits of a pixel")
    number_of_writers = Component(InternalSignal, value=0, kind=Kind.config, doc="raw files of a run")
    directory = Component(
        InternalSignal, value="", kind=Kind.config, doc="of the files, as the driver sees it"
    )
    file_prefix = Component(InternalSignal, value="", kind=Kind.config, doc="beginning of the files' names")

    def __init__(
        self,
        prefix: str = DEFAULT_URL,
        *,
        name: str,
        paths: PathProvider | str | Path,
        trigger: Trigger = None,
        trigger_value: Any = 1,
        exposure_time: float | Signal | None = None,
        config: DetectorConfig | str | Path | None = None,
        documents: DocumentKind = "stream",
        start_options: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Nothing is connected to before the first `stage`.

        `prefix` is the url of the driver; `paths` a directory, or a provider (see `stddaq_ophyd.core.paths`).
        `trigger` makes the camera take the images of a point: an ophyd signal, to which `trigger_value` is
        put, a callable, or a `Camera`; without it, and without a component `camera`, the next images that
        come are those of the point. `exposure_time` in seconds, or the signal that has it. `config` (needed
        with drivers of others for flights) says shape and type of the images. `documents`: "stream" is
        StreamResource and StreamDatum, else it is the spec of Resource and Datum; AD_HDF5 closes the files
        for each point, because its handlers cannot read files that grow. `start_options` are further fields
        of the driver's `start`, as `writer_id`.
        """
        super().__init__(prefix, name=name, **kwargs)
        self._paths = _as_provider(paths)
        own: Camera | None = getattr(self, "camera", None) if "camera" in self.component_names else None
        self._camera = as_camera(trigger, trigger_value) or own
        self._exposure = exposure_time if isinstance(exposure_time, Signal) else None
        if isinstance(exposure_time, int | float):
            self.exposure_time.put(float(exposure_time))
        self._documents, self._start_options = documents, dict(start_options or {})
        if documents not in get_args(DocumentKind):
            raise AcquisitionError(
                f"{name}: documents: found {documents!r}, allowed are {', '.join(get_args(DocumentKind))}"
            )
        if documents != "stream":
            # Who has it is taken for a device that emits StreamDatum.
            self.get_index = None  # pyright: ignore[reportAttributeAccessIssue]
        self._worker = Worker(f"steps of {name}")
        self._acquisition: Acquisition | None = None
        self._is_staged = False
        self._pending: StepStatus | None = None
        self._unfinished: set[StepStatus] = set()
        self._to_fly = 0
        self._handed_out: list[Document] = []
        self._datum_id = ""
        self.error: Exception | None = None
        if config is not None:
            loaded = config if isinstance(config, DetectorConfig) else DetectorConfig.load(config)
            self._note_layout(loaded.image_shape, loaded.dtype.str, loaded.number_of_writers)
        _devices.add(self)

    @property
    def paths(self) -> PathProvider:
        """Where the files of the next staging go; a directory may be assigned."""
        return self._paths

    @paths.setter
    def paths(self, paths: PathProvider | str | Path) -> None:
        self._paths = _as_provider(paths)

    # Staging.

    def stage(self) -> StepStatus:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Start a run of the driver. Done when no image that is taken from now on can be missed.

        Fails with the driver's reason, and leaves nothing behind then. Raises `RedundantStaging`.
        """
        if self._is_staged:
            raise RedundantStaging(f"{self.name} is staged already; {self.name}.unstage() comes first")
        self._is_staged, self.error = True, None
        return self._submit(self._stage, StepStatus(self))

    def _stage(self, status: StepStatus) -> None:
        self._acquisition = None
        self._handed_out.clear()
        try:
            super().stage()
            paths = self._paths(self.name)
            self._acquisition = Acquisition(
                self.prefix,
                self.name,
                paths,
                self._start_options,
                self.image_key,
                self._make_announcer,
                announce_live=self._documents != AREA_DETECTOR_SPEC,
            )
            self.directory.put(str(paths.directory), internal=True)
            self.file_prefix.put(paths.prefix, internal=True)
            for signal in (self.n_images, self.n_recorded, self.n_bad):
                signal.put(0, internal=True)
            self.stream.put("")
            recording = self._acquisition.begin()
            if recording.image_shape and recording.dtype:
                self._note_layout(recording.image_shape, recording.dtype, len(recording.raw_files))
        except BaseException:
            self._is_staged = False
            if self._acquisition is not None:
                self._acquisition.end()
            with contextlib.suppress(Exception):
                super().unstage()
            raise

    def unstage(self) -> StepStatus:  # pyright: ignore[reportIncompatibleMethodOverride]
        """End the run. Done when the driver is idle and the files are closed.

        May be called at any time, any number of times. Fails only when closing the files does; whatever went
        wrong first is in `error`. Images that are still waited for are given up.
        """
        self._is_staged = False
        if _in_run_engine():
            # Of an aborted plan. Their failure would be taken for one of the cleaning up, and break that off.
            self._unfinished.clear()
            self._pending = None
        if self._acquisition is not None:
            self._acquisition.stop()
        return self._submit(self._unstage, StepStatus(self), may_be_forgotten=False)

    def _unstage(self, status: StepStatus) -> None:
        acquisition = self._acquisition
        known = acquisition.error if acquisition else None
        try:
            if acquisition is not None:
                acquisition.end()
        finally:
            super().unstage()
        if acquisition is not None and acquisition.error is not known:
            raise acquisition.error or AcquisitionError(f"{self.name}: the run failed")

    def stop(self, *, success: bool = False) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Give up the images that are waited for, and end the run; returns at once.

        A point that is triggered after that is recorded in a new run.
        """
        acquisition = self._acquisition
        if acquisition is None:
            return
        acquisition.stop()

        def close(_: StepStatus) -> None:
            acquisition.end()
            acquisition.pause_over()

        self._submit(close, StepStatus(self))

    # Points.

    def trigger(self) -> AcquisitionStatus:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take the images of a point. Done when they are recorded, and can be read by others.

        Fails when they do not come within exposure time and margin, or some are lost. Raises
        `AcquisitionError` when the device is not staged.
        """
        self._check_staged("trigger")
        status = AcquisitionStatus(self, int(_value(self.images_per_trigger)))
        self._pending = status
        return self._submit(self._take_point, status)

    def _take_point(self, status: AcquisitionStatus) -> None:
        plan = self._plan(int(_value(self.images_per_trigger)))
        after = self._staged_acquisition().take_point(
            partial(self._fire, plan.images_per_event), plan, lambda n, _: status.progress(n)
        )
        self._note_received(plan.images_per_event, after)

    def read(self) -> OrderedDict[str, Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Scalars of the newest point.

        Outside of a RunEngine it waits for a point that was triggered, and raises what that failed with.
        """
        if not _in_run_engine():
            pending, self._pending = self._pending, None
            if pending is not None:
                pending.wait()
        reading: Any = super().read()
        if self._documents != "stream" and self._acquisition is not None:
            documents = self._acquisition.documents(stream=str(_value(self.stream)))
            self._handed_out += documents
            self._datum_id = next(
                (doc["datum_id"] for kind, doc in documents if kind == "datum"), self._datum_id
            )
            reading[self.image_key] = {"value": self._datum_id, "timestamp": time.time()}
        return reading

    def describe(self) -> OrderedDict[str, Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """What `read` has, and the images, of which documents tell."""
        if _in_run_engine() and self._acquisition is not None:
            # A RunEngine asks once for each stream of each run, before its first documents.
            self._acquisition.expect_new_stream()
        description: Any = super().describe()
        description.update(self._describe_images())
        return description

    @property
    def image_key(self) -> str:
        """Name of the images in documents."""
        return f"{self.name}_image"

    def _describe_images(self) -> dict[str, dict[str, Any]]:
        shape = int(_value(self.image_height)), int(_value(self.image_width))
        if not all(shape):
            if not _in_run_engine():
                return {}
            raise AcquisitionError(
                f"{self.name}: shape and type of the images are not known, because the driver {self.prefix} "
                "does not say; give the device its detector's configuration (config=...)"
            )
        return {
            self.image_key: {
                "source": self.prefix,
                "dtype": "array",
                "dtype_numpy": self.pixel_type.get(),
                "shape": [int(_value(self.images_per_trigger)), *shape],
                "dims": ["image", "y", "x"],
                "external": "STREAM:" if self._documents == "stream" else "FILESTORE:",
            }
        }

    def collect_asset_docs(self, index: int | None = None) -> Iterator[Document]:
        """Documents of what is recorded and not announced; of a flight up to event `index`.

        A RunEngine does not say for which stream it asks. That a new one begins is known from `describe`; a
        plan that goes back to an earlier one sets `stream` before. Raises `AcquisitionError` when the files
        do not show what was recorded.
        """
        handed_out, self._handed_out = self._handed_out, []
        yield from handed_out
        if self._documents == "stream" and self._acquisition is not None:
            yield from self._acquisition.documents(index, str(_value(self.stream)))

    # Flights.

    def prepare(self, value: int) -> StepStatus:
        """Set how many events, of `images_per_trigger` images each, the next flight takes."""
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise AcquisitionError(
                f"{self.name}: prepare: found {value!r}, allowed is a number of events from 1"
            )
        self._to_fly = value
        status = StepStatus(self)
        status.set_finished()
        return status

    def kickoff(self) -> StepStatus:
        """Begin a flight of as many events as `prepare` was told. Done when the camera was triggered."""
        self._check_staged("kickoff")
        if not self._to_fly:
            raise AcquisitionError(
                f"{self.name}: how many images to take is not known; {self.name}.prepare(n) comes first"
            )
        if self._documents != "stream":
            raise AcquisitionError(
                f'{self.name}: a flight takes a device with documents="stream", found "{self._documents}"'
            )
        return self._submit(self._kickoff, StepStatus(self))

    def _kickoff(self, status: StepStatus) -> None:
        plan = self._plan(int(_value(self.images_per_trigger)))
        fire = partial(self._fire, self._to_fly * plan.images_per_event)
        self._staged_acquisition().begin_flight(fire, self._to_fly, plan)

    def complete(self) -> AcquisitionStatus:
        """Done when all images of the flight are recorded. Fails when they stop coming, or some are lost."""
        self._check_staged("complete")
        status = AcquisitionStatus(self, self._to_fly * int(_value(self.images_per_trigger)))
        self._pending = status
        return self._submit(self._complete, status)

    def _complete(self, status: AcquisitionStatus) -> None:
        def progress(n: int, received: RunCounts) -> None:
            self._note_received(n, received)
            status.progress(n)

        after = self._staged_acquisition().finish_flight(progress)
        self._note_received(self._to_fly * int(_value(self.images_per_trigger)), after)

    def pause(self) -> None:
        """Called by a RunEngine that pauses. Images of a flight go on, so that it cannot be replayed."""
        if self._acquisition is not None and self._acquisition.is_flying:
            raise NoReplayAllowed(f"{self.name} takes images of a flight")
        super().pause()

    def describe_collect(self) -> dict[str, dict[str, Any]]:
        """The images; their documents come by `collect`."""
        if self._acquisition is not None:
            self._acquisition.expect_new_stream()
        return self._describe_images()

    def get_index(self) -> int:
        """How many events of the flight can be announced. Looks at the files at most once a second."""
        return self._acquisition.n_events() if self._acquisition else 0

    # For whoever sits at the prompt.

    def driver_state(self) -> str:
        """What the driver says of itself now, in words."""
        try:
            with DriverClient(self.prefix) as client:
                latest = client.latest
        except DriverError as error:
            return f"not reachable: {error}"
        count = f", {latest.count} images" if latest.count is not None else ""
        return latest.status + count

    def __repr__(self) -> str:
        state = "staged" if self._is_staged else "not staged"
        return f"{type(self).__name__}({self.prefix!r}, name={self.name!r}: {state}, paths={self._paths})"

    def _summary(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        files = f"{self.directory.get()}/{self.file_prefix.get()}*.h5" if self.directory.get() else "none yet"
        head = [
            f"{self.name}: {'staged' if self._is_staged else 'not staged'}",
            f"driver           {self.prefix}: {self.driver_state()}",
            f"files            {files}",
            f"next files       {self._paths}",
            f"trigger          {self._camera or 'none: the next images that come'}",
            f"last error       {self.error or 'none'}",
            "",
        ]
        return "\n".join([*head, super()._summary()])

    # Within.

    def _submit(self, step: Callable[[S], None], status: S, *, may_be_forgotten: bool = True) -> S:
        """Let the thread do `step`, and `status` tell of it, unless it fails and is forgotten by then."""

        def do() -> None:
            try:
                step(status)
            except Exception as error:  # noqa: BLE001  (it belongs to whoever waits for the status)
                if status in self._unfinished or not may_be_forgotten:
                    self._unfinished.discard(status)
                    self.error = self.error or error
                    status.set_exception(error)
            else:
                self._unfinished.discard(status)
                status.set_finished()

        if may_be_forgotten:
            self._unfinished.add(status)
        self._worker.submit(do)
        return status

    def _check_staged(self, what: str) -> None:
        if not self._is_staged:
            raise AcquisitionError(f"{self.name}: {what}: not staged; {self.name}.stage() comes first")

    def _staged_acquisition(self) -> Acquisition:
        if self._acquisition is None:
            raise AcquisitionError(f"{self.name}: not staged: {self.error or 'unstaged meanwhile'}")
        return self._acquisition

    def _plan(self, images_per_event: int) -> Plan:
        if self._exposure is not None:
            self.exposure_time.put(float(_value(self._exposure)))
        if images_per_event < 1:
            raise AcquisitionError(
                f"{self.name}: images_per_trigger: found {images_per_event}, allowed is 1 or more"
            )
        patience = float(_value(self.exposure_time)) * images_per_event + float(_value(self.margin))
        return Plan(images_per_event, patience, bool(_value(self.allow_bad)))

    def _fire(self, n_images: int) -> None:
        if self._camera is None:
            return
        try:
            self._camera.fire(n_images)
        except Exception as error:
            raise AcquisitionError(f"{self.name}: the camera cannot be triggered: {error}") from error

    def _make_announcer(self, source: ImageSource) -> Announcer:
        if self._documents == "stream":
            return StreamAnnouncer(source)
        return DatumAnnouncer(source, self._documents)

    def _note_received(self, n_images: int, received: RunCounts) -> None:
        self.n_images.put(n_images, internal=True)
        self.n_recorded.put(received.n_images, internal=True)
        self.n_bad.put(sum(received.bad_since(RunCounts()).values()), internal=True)

    def _note_layout(self, shape: tuple[int, int], dtype: str, number_of_writers: int) -> None:
        self.image_height.put(shape[0], internal=True)
        self.image_width.put(shape[1], internal=True)
        self.pixel_type.put(dtype, internal=True)
        self.bit_depth.put(8 * int(dtype[2:]), internal=True)
        self.number_of_writers.put(number_of_writers, internal=True)

    def _finish(self) -> None:
        """End a run that goes on when the program ends."""
        if self._is_staged:
            self.unstage()
        self._worker.wait_until_idle(EXIT_TIMEOUT_S)


def _as_provider(paths: PathProvider | str | Path) -> PathProvider:
    return DirectoryPaths(paths) if isinstance(paths, str | Path) else paths


def _value(signal: Signal) -> Any:
    return signal.get()


def _in_run_engine() -> bool:
    """Whether a RunEngine calls: it has a loop in a thread of its own."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return threading.current_thread() is not threading.main_thread()


_devices: weakref.WeakSet[StdDaqDetector] = weakref.WeakSet()


@atexit.register
def _finish_all() -> None:
    for device in tuple(_devices):
        device._finish()
