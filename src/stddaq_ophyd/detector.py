"""The detector as an ophyd device: stage, trigger, read, unstage; kickoff, complete, collect.

What takes time runs in a thread of the device, one step after the other, so that the RunEngine and the prompt
wait only for the Status that they receive. `stddaq_ophyd.core` does the recording and publishes the images.
"""

from __future__ import annotations

import atexit
import contextlib
import sys
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any

from bluesky.utils import NoReplayAllowed
from ophyd import Kind, Signal
from ophyd.utils import RedundantStaging

from stddaq.client import DEFAULT_URL, DriverClient
from stddaq.client.address import split_token
from stddaq.client.errors import DriverError
from stddaq.config import DetectorConfig
from stddaq.text import mismatch
from stddaq_ophyd.camera import Trigger, as_camera
from stddaq_ophyd.core.acquisition import UNREAD, Acquisition, Settings
from stddaq_ophyd.core.camera import Camera
from stddaq_ophyd.core.documents import Document, DocumentsName, documents_of
from stddaq_ophyd.core.errors import AcquisitionError, SettingError
from stddaq_ophyd.core.paths import DirectoryPaths, PathProvider
from stddaq_ophyd.core.publication import Publication
from stddaq_ophyd.core.run_counts import RunCounts
from stddaq_ophyd.core.scalars import Region
from stddaq_ophyd.detector_signals import DetectorSignals
from stddaq_ophyd.steps import (
    AcquisitionStatus,
    Steps,
    StepStatus,
    in_run_engine,
    is_description_for_documents,
)

# An exiting program waits this long for the files of a run that is still open.
EXIT_TIMEOUT_S = 10.0


class StdDaqDetector(DetectorSignals):
    """A detector whose images the driver at url `prefix` records.

    det = StdDaqDetector("ws://127.0.0.1:8080", name="det", paths="/data", trigger=camera.software_trigger)
    RE(count([det], 5))

    A subclass may have a component `camera` (see `stddaq_ophyd.camera`), which takes the images, and a
    component `live_stream`.
    """

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
        documents: DocumentsName = "stream",
        start_options: Mapping[str, Any] | None = None,
        regions: Mapping[str, Region] | None = None,
        **kwargs: Any,
    ) -> None:
        """Nothing is connected before the first `stage`.

        A driver that demands a token gets that of the URL, `ws://any:TOKEN@host:8080`, or of the environment
        variable STDDAQ_TOKEN.
        `paths` is a directory, or a provider (see `stddaq_ophyd.core.paths`). `trigger` makes the camera take
        the images of a point: an ophyd signal, which is set to `trigger_value`, a callable, or a `Camera`;
        without it, and without a component `camera`, the next images that arrive are those of the point.
        `exposure_time` is in seconds, or a signal that holds it. `config` gives shape and type of the images,
        which flights need with drivers that do not report them. `documents` is "stream" for StreamResource
        and StreamDatum, or a spec of Resource and Datum; with AD_HDF5 the files are closed for each point,
        because its handlers cannot read files that grow. `start_options` are further fields of the driver's
        `start`, like `writer_id`. `regions` are (first row, last row, first column, last column), the last
        ones not included; events have the sum of the pixels of each, as `<name>_<region>`.
        """
        # Documents and messages show the URL, but never the token.
        prefix, self._token = split_token(prefix, None)
        super().__init__(prefix, name=name, **kwargs)
        self._paths = _as_provider(paths)
        component: Camera | None = getattr(self, "camera", None) if "camera" in self.component_names else None
        self._camera = as_camera(trigger, trigger_value) or component
        self._exposure = exposure_time if isinstance(exposure_time, Signal) else None
        if exposure_time is not None and self._exposure is None:
            self.exposure_time.put(exposure_time)
        self._start_options = dict(start_options or {})
        self._documents = documents_of(documents, f"{name}: documents")
        if self._documents.supports_flights:
            # The RunEngine treats any device with `get_index()` as a StreamDatum device.
            self.get_index = self._n_ready_events
        self._steps = Steps(f"steps of {name}")
        self._acquisition: Acquisition | None = None
        self._is_staged = False
        self._pending: StepStatus | None = None
        self._n_events_to_fly = self._n_images_in_flight = 0
        # Whether a point or flight was started since staging, and whether a reading waits for its documents.
        self._is_triggered = self._is_read = False
        self._is_described_for_flight = False
        self._regions = {region: _checked(name, region, place) for region, place in (regions or {}).items()}
        self._region_sums: dict[str, float] = {}
        if config is not None:
            loaded = config if isinstance(config, DetectorConfig) else DetectorConfig.load(config)
            self._note_layout(loaded.image_shape, loaded.dtype.str, loaded.number_of_writers)
        _devices.add(self)

    @property
    def error(self) -> Exception | None:
        """Return the first failure since the device was staged."""
        return self._steps.error

    @property
    def orphans(self) -> dict[str, int]:
        """Return the numbers of recorded images that are in no document, by reason, after unstaging."""
        return dict(self._acquisition.orphans) if self._acquisition else {}

    @property
    def paths(self) -> PathProvider:
        """Return where the files of the next staging go. A directory may be assigned."""
        return self._paths

    @paths.setter
    def paths(self, paths: PathProvider | str | Path) -> None:
        self._paths = _as_provider(paths)

    # Staging.

    def stage(self) -> StepStatus:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Start a driver run. The Status is done when no image that is published from then on can be missed.

        It fails with the driver's reason, and the device is not staged then. Raises `RedundantStaging`.
        """
        if self._is_staged:
            raise RedundantStaging(f"{self.name} is staged already; {self.name}.unstage() comes first")
        self._is_staged, self._steps.error = True, None
        self._is_triggered = self._is_read = False
        self.stream.put("")
        self._n_events_to_fly = self._n_images_in_flight = 0
        return self._steps.submit(self._stage, StepStatus(self))

    def _stage(self, status: StepStatus) -> None:
        self._acquisition = None
        self._documents.reset()
        try:
            super().stage()
            self._acquisition = self._new_acquisition()
            self._reset_counts()
            run = self._acquisition.start_run()
            if run.image_shape and run.dtype:
                self._note_layout(run.image_shape, run.dtype, len(run.raw_files))
        except BaseException:
            self._is_staged = False
            if self._acquisition is not None:
                self._acquisition.close()
            with contextlib.suppress(Exception):
                super().unstage()
            raise

    def _new_acquisition(self) -> Acquisition:
        if "bluesky_tiled_plugins.writing.consolidators" in sys.modules:
            from stddaq_ophyd import tiled_export

            tiled_export.register()
        paths = self._paths(self.name)
        self._note_files(paths)
        publication = Publication(self.name, paths, self.image_key, self._documents)
        return Acquisition(
            self.prefix, self.name, self._start_options, publication, self._camera, self._token
        )

    def unstage(self) -> StepStatus:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Stop waiting for images and end the run. The Status is done when the driver is idle, files closed.

        It may be called at any time, any number of times. The Status fails only when closing the files does;
        the first failure since staging is in `error`.
        """
        self._is_staged = False
        if in_run_engine():
            # The RunEngine would count a failure of the aborted plan as one of its cleanup, and stop that.
            self._steps.abandon()
            self._pending = None
        if self._acquisition is not None:
            self._acquisition.stop()
        return self._steps.submit(self._unstage, StepStatus(self), can_be_abandoned=False)

    def _unstage(self, status: StepStatus) -> None:
        acquisition = self._acquisition
        known = acquisition.error if acquisition else None
        try:
            if acquisition is not None:
                acquisition.close()
        finally:
            super().unstage()
        if acquisition is not None:
            self._check_documents(acquisition)
            if acquisition.error is not None and acquisition.error is not known:
                raise acquisition.error

    def _check_documents(self, acquisition: Acquisition) -> None:
        """Raise when points were taken through a parent that passed no documents on."""
        n, advice = acquisition.orphans[UNREAD], self._parent_of_plan()
        if n and advice and not acquisition.n_announced and acquisition.error is None:
            raise AcquisitionError(mismatch(self.name, f"documents of {n} images", "none", advice))

    def stop(self, *, success: bool = False) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Stop waiting for images, and end the run. Return at once.

        Points that are triggered later are recorded in a new run.
        """
        acquisition = self._acquisition
        if acquisition is None:
            return
        acquisition.stop()

        def close(_: StepStatus) -> None:
            acquisition.close()
            acquisition.allow_restart()

        self._steps.submit(close, StepStatus(self))

    # Points.

    def trigger(self) -> AcquisitionStatus:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take the images of a point. The Status is done when they are recorded and readable.

        It fails when they do not come within exposure time and margin, or some are bad. Raises
        `AcquisitionError` when the device is not staged.
        """
        self._check_staged("trigger")
        n_images = self._event_size
        self._is_triggered = True
        status = AcquisitionStatus(self, n_images)
        self._pending = status
        return self._steps.submit(partial(self._take_point, n_images), status)

    def _take_point(self, n_images: int, status: AcquisitionStatus) -> None:
        counts = self._staged_acquisition().take_point(
            self._new_settings(n_images), lambda n, _: status.progress(n)
        )
        self._note_counts(n_images, counts)
        self._note_scalars()

    def _note_scalars(self) -> None:
        """Read the images of the point, unless neither their mean nor regions are wanted."""
        acquisition = self._acquisition
        if acquisition is None or (self.mean.kind is Kind.omitted and not self._regions):
            return
        found = acquisition.scalars(self._regions)
        if found is not None:
            self.mean.put(found.mean, internal=True)
            self._region_sums = found.sums

    @property
    def _region_keys(self) -> dict[str, str]:
        """Return the data key of each region."""
        return {f"{self.name}_{region}": region for region in self._regions}

    @property
    def hints(self) -> dict[str, Any]:
        """Return what tables and plots of points show; documents of flights have images only."""
        if self._is_described_for_flight:
            return {"fields": []}
        mean = [] if self.mean.kind is Kind.omitted else [self.mean.name]
        return {"fields": [*mean, *self._region_keys]} if mean or self._regions else super().hints

    def read(self) -> OrderedDict[str, Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the scalars of the newest point.

        Outside a RunEngine it waits for a triggered point, and raises the error that the point failed with.
        """
        if not in_run_engine():
            pending, self._pending = self._pending, None
            if pending is not None:
                pending.wait()
        elif self._is_staged and not self._is_triggered:
            raise AcquisitionError(
                mismatch(f"{self.name}: read", "a trigger before it", "none", self._parent_of_plan())
            )
        # A RunEngine asks for the documents of an event after it has read the device.
        self._is_read = True
        reading: Any = super().read()
        for key, region in self._region_keys.items():
            value = self._region_sums.get(region, 0.0)
            reading[key] = {"value": value, "timestamp": reading[self.n_images.name]["timestamp"]}
        if self._acquisition is not None:
            reading.update(self._documents.reading(self.image_key, self._publish))
        return reading

    def describe(self) -> OrderedDict[str, Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return descriptions of what `read` returns, and of the images, which documents reference."""
        description: Any = super().describe()
        for key in self._region_keys:
            description[key] = {"source": self.prefix, "dtype": "number", "shape": [], "dtype_numpy": "<f8"}
        if is_description_for_documents() and self._is_staged:
            # A RunEngine asks once for each stream of each run, before its first documents.
            self._is_described_for_flight = False
            self._expect_new_stream()
        if self._is_staged or not in_run_engine():
            description.update(self._describe_images())
        return description

    def _expect_new_stream(self) -> None:
        if self._acquisition is not None:
            self._acquisition.expect_new_stream(self._event_size, self._stream_name)
            if self._is_read:
                self._documents.read_again(self._acquisition.withdraw_point, self._publish)

    @property
    def image_key(self) -> str:
        """Return the name of the images in documents."""
        return f"{self.name}_image"

    def _describe_images(self) -> dict[str, dict[str, Any]]:
        shape = self._image_shape
        if not all(shape):
            if not in_run_engine():
                return {}
            raise AcquisitionError(
                f"{self.name}: shape and type of the images are unknown, because the driver {self.prefix} "
                "does not report them; give the device the configuration of its detector (config=...)"
            )
        return {
            self.image_key: {
                "source": self.prefix,
                "dtype": "array",
                "dtype_numpy": self.pixel_type.get(),
                "shape": [self._event_size, *shape],
                "dims": ["image", "y", "x"],
                "external": self._documents.external,
            }
        }

    def collect_asset_docs(self, index: int | None = None) -> Iterator[Document]:
        """Yield documents of what is recorded and not published yet; of a flight up to event `index`.

        A RunEngine does not name the stream that it collects for. `describe` shows that a new one begins; a
        plan that returns to an earlier one sets `stream` before. Raises `AcquisitionError` when the files do
        not show what was recorded, and when an event has no point.
        """
        is_event, self._is_read = self._is_read, False
        yield from self._documents.collect(partial(self._publish, index, of_event=is_event))

    def _publish(self, index: int | None = None, *, of_event: bool = True) -> list[Document]:
        if self._acquisition is None or not self._is_staged:
            return []
        return self._acquisition.documents(index, self._stream_name, of_event=of_event)

    # Flights.

    # The number of events of the flight that can be published; only with StreamDatum documents.
    get_index: Callable[[], int]

    def prepare(self, value: int) -> StepStatus:
        """Set how many events, of `images_per_event` images each, the next flight takes."""
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
            raise AcquisitionError(
                mismatch(f"{self.name}: prepare", "a number of events from 1", repr(value))
            )
        self._n_events_to_fly = int(value)
        status = StepStatus(self)
        status.set_finished()
        return status

    def kickoff(self) -> StepStatus:
        """Start a flight of the prepared length. The Status is done when the camera was triggered."""
        n_events, self._n_events_to_fly = self._n_events_to_fly, 0
        if not self._is_staged or not n_events:
            found = "an unknown number" if self._is_staged else "not staged"
            raise AcquisitionError(
                mismatch(
                    f"{self.name}: kickoff",
                    f"{self.name}.stage() and {self.name}.prepare(n) before it",
                    found,
                    f"the plan is stddaq_ophyd.plans.fly([{self.name}], n)",
                )
            )
        if not self._documents.supports_flights:
            raise AcquisitionError(f'{self.name}: flights need a device with documents="stream"')
        n_images = self._event_size
        self._is_triggered, self._is_read = True, False
        self._n_images_in_flight = n_events * n_images
        return self._steps.submit(partial(self._kickoff, n_events, n_images), StepStatus(self))

    def _kickoff(self, n_events: int, n_images: int, status: StepStatus) -> None:
        self._staged_acquisition().start_flight(n_events, self._new_settings(n_images))

    def complete(self) -> AcquisitionStatus:
        """Wait for all images of the flight. The Status fails when they stop coming, or some are bad.

        Without a flight it is done at once.
        """
        n_images, self._n_images_in_flight = self._n_images_in_flight, 0
        status = AcquisitionStatus(self, n_images)
        if not n_images:
            status.set_finished()
            return status
        self._pending = status
        return self._steps.submit(partial(self._complete, n_images), status)

    def _complete(self, n_images: int, status: AcquisitionStatus) -> None:
        def progress(n: int, counts: RunCounts) -> None:
            self._note_counts(n, counts)
            status.progress(n)

        self._note_counts(n_images, self._staged_acquisition().finish_flight(progress))

    def pause(self) -> None:
        """Refuse a replay during a flight, whose images go on during a pause. The RunEngine calls it."""
        if self._acquisition is not None and self._acquisition.is_flying:
            raise NoReplayAllowed(f"{self.name} is in a flight")
        super().pause()

    def describe_collect(self) -> dict[str, dict[str, Any]]:
        """Return the description of the images; their documents come by `collect`."""
        if is_description_for_documents():
            self._is_described_for_flight = True
            self._expect_new_stream()
        return self._describe_images()

    def _n_ready_events(self) -> int:
        return self._acquisition.n_ready_events() if self._acquisition else 0

    # At the prompt.

    def driver_state(self) -> str:
        """Return what the driver is doing, in words."""
        try:
            with DriverClient(self.prefix, token=self._token) as client:
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
            f"trigger          {self._camera or 'none, the next images that arrive'}",
            f"orphans          {self._orphans_in_words()}",
            f"last error       {self.error or 'none'}",
            "",
        ]
        return "\n".join([*head, super()._summary()])

    def _orphans_in_words(self) -> str:
        return "; ".join(f"{n} images of {reason}" for reason, n in self.orphans.items()) or "none"

    # Within.

    def _parent_of_plan(self) -> str:
        """Return what to use in a plan instead of a parent that does not trigger or collect."""
        parent = self.parent
        if parent is None or hasattr(parent, "collect_asset_docs"):
            return ""
        return f"{parent.name} does not pass it on: use {parent.name}.{self.attr_name} in the plan"

    def _check_staged(self, method: str) -> None:
        if not self._is_staged:
            why = f": {self.error}" if self.error else f"; {self.name}.stage() comes first"
            raise AcquisitionError(f"{self.name}: {method}: not staged{why}")

    def _staged_acquisition(self) -> Acquisition:
        if self._acquisition is None:
            raise AcquisitionError(f"{self.name}: not staged: {self.error or 'it was unstaged meanwhile'}")
        return self._acquisition

    def _new_settings(self, n_images: int) -> Settings:
        if self._exposure is not None:
            exposure: Any = self._exposure.get()
            self.exposure_time.put(float(exposure))
        return self._settings(n_images, publish_live=self._documents.reads_growing_files)

    def _finish(self) -> None:
        """End a run that is still open when the program exits."""
        if self._is_staged:
            self.unstage()
        self._steps.wait_until_done(EXIT_TIMEOUT_S)


def _as_provider(paths: PathProvider | str | Path) -> PathProvider:
    if isinstance(paths, str | Path):
        return DirectoryPaths(paths)
    if not callable(paths):
        expected = "a directory, or a function that returns a PathInfo"
        raise SettingError(mismatch("paths", expected, repr(paths)))
    return paths


def _checked(device: str, name: str, region: Region) -> Region:
    """Return a region. Raises `SettingError` when it is none."""
    numbers = tuple(region)
    if len(numbers) != 4 or not all(isinstance(number, Integral) and number >= 0 for number in numbers):
        raise SettingError(
            mismatch(f"{device}: region {name}", "four whole numbers: rows, columns", repr(region))
        )
    top, bottom, left, right = map(int, numbers)
    if not (name.isidentifier() and top < bottom and left < right):
        raise SettingError(
            mismatch(f"{device}: region {name}", "a name of letters, and rows and columns", repr(region))
        )
    return top, bottom, left, right


_devices: weakref.WeakSet[StdDaqDetector] = weakref.WeakSet()


@atexit.register
def _finish_all() -> None:
    for device in tuple(_devices):
        device._finish()
