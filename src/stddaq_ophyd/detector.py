"""The detector as an ophyd device: points by trigger and read; flights by kickoff, complete, collect.

`stddaq_ophyd.core` does the recording and publishes the images.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any

from bluesky.utils import NoReplayAllowed
from ophyd import Kind, Signal

from stddaq.client import DEFAULT_URL
from stddaq.config import DetectorConfig
from stddaq.text import mismatch
from stddaq_ophyd.camera import Trigger, as_camera
from stddaq_ophyd.core.documents import Document, DocumentsName, documents_of
from stddaq_ophyd.core.errors import AcquisitionError
from stddaq_ophyd.core.paths import Engine, PathProvider
from stddaq_ophyd.core.run_counts import RunCounts
from stddaq_ophyd.core.scalars import Region, WantedScalars
from stddaq_ophyd.core.settings import Settings
from stddaq_ophyd.detector_staging import StagedDetector
from stddaq_ophyd.region_sums import RegionSums
from stddaq_ophyd.run_engine import in_run_engine, is_description_for_documents
from stddaq_ophyd.steps import AcquisitionStatus, StepStatus


class StdDaqDetector(StagedDetector):
    """A detector whose images the driver at url `prefix` records::

        det = StdDaqDetector("ws://127.0.0.1:8080", name="det", paths="/data", trigger=camera.trigger)
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
        other_drivers: Sequence[str] = (),
        nexus: Mapping[str, Any] | None = None,
        engine: Engine | None = None,
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
        `other_drivers` are URLs of drivers that record further parts of the same images, in the same run:
        documents reference the images of the driver at `prefix`, the master file over the parts shows all.
        `nexus` gives metadata for NeXus files, `{"beam.energy_kev": mono.energy, "sample.name": "sample"}`:
        signals and motors, read at `stage` and converted from their units; keys of the start document, which
        need `engine`, the RunEngine; numbers. With `engine` the run also keeps uid, scan_id and plan_name.
        Raises `SettingError`.
        """
        super().__init__(
            prefix,
            name=name,
            paths=paths,
            camera=as_camera(trigger, trigger_value),
            documents=documents_of(documents, f"{name}: documents"),
            start_options=start_options,
            other_drivers=other_drivers,
            nexus=nexus,
            engine=engine,
            **kwargs,
        )
        self._exposure = exposure_time if isinstance(exposure_time, Signal) else None
        if exposure_time is not None and self._exposure is None:
            self.exposure_time.put(exposure_time)
        if self._documents.supports_flights:
            # The RunEngine treats any device with `get_index()` as a StreamDatum device.
            self.get_index = self._n_ready_events
        self._n_events_to_fly = self._n_images_in_flight = 0
        self._kickoff_status: StepStatus | None = None
        # Whether a point or flight was started since staging, and whether a reading waits for its documents.
        self._is_triggered = self._is_read = False
        self._is_described_for_flight = False
        self._regions = RegionSums(name, self.prefix, regions)
        if config is not None:
            loaded = config if isinstance(config, DetectorConfig) else DetectorConfig.load(config)
            self._note_layout(loaded.image_shape, loaded.dtype.str, loaded.number_of_writers)

    def stage(self) -> StepStatus:
        status = super().stage()
        self._is_triggered = self._is_read = False
        self._n_events_to_fly = self._n_images_in_flight = 0
        self.stream.put("")
        return status

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

    async def _take_point(self, n_images: int, status: AcquisitionStatus) -> None:
        settings = await self._new_settings(n_images)
        await self._follow_paths()
        counts = await self._staged_acquisition().take_point(settings, lambda n, _: status.progress(n))
        self._note_counts(n_images, counts)
        self._note_scalars()

    def _note_scalars(self) -> None:
        """Show the mean and the sums of the point, as far as they are wanted."""
        found = self._acquisition.scalars if self._acquisition else None
        if found is None:
            return
        if found.mean is not None:
            self.mean.put(found.mean, internal=True)
        self._regions.values = found.sums

    @property
    def hints(self) -> dict[str, Any]:
        """Return what tables and plots of points show; documents of flights have images only."""
        if self._is_described_for_flight:
            return {"fields": []}
        mean = [] if self.mean.kind is Kind.omitted else [self.mean.name]
        return {"fields": [*mean, *self._regions.keys]} if mean or self._regions.keys else super().hints

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
        reading.update(self._regions.reading(reading[self.n_images.name]["timestamp"]))
        if self._acquisition is not None:
            reading.update(self._documents.reading(self.image_key, self._publish))
        return reading

    def describe(self) -> OrderedDict[str, Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return descriptions of what `read` returns, and of the images, which documents reference."""
        description: Any = super().describe()
        description.update(self._regions.description())
        if is_description_for_documents() and self._is_staged:
            # A RunEngine asks once for each stream of each run, before its first documents.
            self._is_described_for_flight = False
            self._expect_new_stream()
        if self._is_staged or not in_run_engine():
            description.update(self._describe_images())
        return description

    def _expect_new_stream(self) -> None:
        if self._acquisition is not None:
            acquisition = self._acquisition
            # The stream is that of a run, which is open now. Its descriptor names the files.
            self._steps.call(self._follow_paths())
            self._steps.call(acquisition.expect_new_stream(self._event_size, self._stream_name))
            if self._is_read:
                self._documents.read_again(
                    lambda: self._steps.call(acquisition.withdraw_point()), self._publish
                )

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
        documents = self._acquisition.documents(index, self._stream_name, of_event=of_event)
        return self._steps.call(documents)

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
        self._kickoff_status = StepStatus(self)
        return self._steps.submit(partial(self._kickoff, n_events, n_images), self._kickoff_status)

    async def _kickoff(self, n_events: int, n_images: int, status: StepStatus) -> None:
        settings = await self._new_settings(n_images)
        await self._follow_paths()
        await self._staged_acquisition().start_flight(n_events, settings)

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

    async def _complete(self, n_images: int, status: AcquisitionStatus) -> None:
        def progress(n: int, counts: RunCounts) -> None:
            self._note_counts(n, counts)
            status.progress(n)

        self._note_counts(n_images, await self._staged_acquisition().finish_flight(progress))

    def pause(self) -> None:
        """Let a point that is taken again not fail the plan. The RunEngine calls it.

        Raises `NoReplayAllowed` during a flight, whose images go on during a pause.
        """
        is_starting = self._kickoff_status is not None and not self._kickoff_status.done
        if is_starting or (self._acquisition is not None and self._acquisition.has_flight):
            raise NoReplayAllowed(f"{self.name} is in a flight")
        if self._pending is not None:
            # A replay takes the point again, after the images of this one have come, or have not.
            self._steps.abandon(self._pending)
        super().pause()

    def describe_collect(self) -> dict[str, dict[str, Any]]:
        """Return the description of the images; their documents come by `collect`."""
        if is_description_for_documents():
            self._is_described_for_flight = True
            self._expect_new_stream()
        return self._describe_images()

    def _n_ready_events(self) -> int:
        return self._steps.call(self._acquisition.n_ready_events()) if self._acquisition else 0

    async def _exposure_time(self) -> float | None:
        if self._exposure is not None:
            exposure: Any = await self._blocking.run(self._exposure.get)
            self.exposure_time.put(float(exposure))
        return await super()._exposure_time()

    async def _new_settings(self, n_images: int) -> Settings:
        await self._exposure_time()
        return self._settings(
            n_images,
            publish_live=self._documents.reads_growing_files,
            scalars=WantedScalars(self.mean.kind is not Kind.omitted, self._regions.regions),
        )
