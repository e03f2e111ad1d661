"""The detector as an ophyd-async device: points by trigger, flights by prepare, kickoff, complete, collect.

`stddaq_ophyd.core` does the recording and publishes the images; the hooks of ophyd-async lead to it.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from bluesky.protocols import Reading, StreamAsset
from bluesky.utils import NoReplayAllowed
from event_model import DataKey
from ophyd_async.core import (
    AsyncStatus,
    DetectorTrigger,
    DetectorTriggerLogic,
    SignalR,
    SignalRW,
    StandardDetector,
    TriggerInfo,
    WatchableAsyncStatus,
    WatcherUpdate,
    soft_signal_r_and_setter,
    soft_signal_rw,
)

from stddaq.client import DEFAULT_URL
from stddaq.client.address import split_token
from stddaq.config import DetectorConfig
from stddaq.text import mismatch
from stddaq_ophyd.async_camera import AsyncTrigger, ExposureLogic, as_async_camera
from stddaq_ophyd.async_driver import AsyncDriver
from stddaq_ophyd.async_logics import AcquireLogic, ImageLogic
from stddaq_ophyd.async_mock import MockAcquisition
from stddaq_ophyd.async_operations import Operations
from stddaq_ophyd.async_paths import AsyncPaths, next_paths
from stddaq_ophyd.core.acquisition import Acquisition
from stddaq_ophyd.core.documents import StreamDocuments
from stddaq_ophyd.core.driver_group import Drivers
from stddaq_ophyd.core.errors import AcquisitionError, AcquisitionStoppedError, SettingError
from stddaq_ophyd.core.paths import Engine, PathInfo
from stddaq_ophyd.core.publication import Publication
from stddaq_ophyd.core.recorder import Recorder
from stddaq_ophyd.core.run_values import RunValues, with_nexus
from stddaq_ophyd.core.settings import Settings
from stddaq_ophyd.core.streams import HasStream
from stddaq_ophyd.core.worker import Worker
from stddaq_ophyd.run_engine import is_description_for_documents

# Of the images in mock mode, unless a configuration says something else.
MOCK_SHAPE, MOCK_TYPE = (16, 24), "<u2"

# The generators within the methods of the base, whose statuses do not end before their timeout.
_trigger: Any = inspect.unwrap(StandardDetector.trigger)
_complete: Any = inspect.unwrap(StandardDetector.complete)


class AsyncStdDaqDetector(StandardDetector, HasStream):
    """A detector whose images the driver at `url` records::

        with init_devices():
            det = AsyncStdDaqDetector("ws://127.0.0.1:8080", "/data", trigger=camera.trigger_command)
        RE(count([det], 5))

    Attributes:
        driver: the state of the driver.
        n_ready: images of this staging that documents may announce.
        allow_bad: whether points and flights with bad images are accepted.
        stream: stream of the next images, set by `name_streams`.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        paths: AsyncPaths = "/tmp",
        *,
        trigger: AsyncTrigger = None,
        trigger_value: Any = 1,
        exposure_time: SignalRW[float] | None = None,
        n_frames: SignalRW[int] | None = None,
        deadtime: float | None = None,
        trigger_logic: DetectorTriggerLogic | None = None,
        config: DetectorConfig | str | Path | None = None,
        start_options: Mapping[str, Any] | None = None,
        other_drivers: Sequence[str] = (),
        nexus: Mapping[str, Any] | None = None,
        engine: Engine | None = None,
        name: str = "",
    ) -> None:
        """`paths` is a directory, a path provider of ophyd-async, or one of `stddaq_ophyd.core.paths`.

        A driver that demands a token gets that of the URL, `ws://any:TOKEN@host:8080`, or of the environment
        variable STDDAQ_TOKEN.
        `trigger` makes the camera take the images: a command of ophyd-async, a signal, which is set to
        `trigger_value`, a function or coroutine function, or a `Camera`; without it the next images that
        arrive are taken. `exposure_time` and `n_frames` are set to live time and number of images of a
        `TriggerInfo`; `deadtime` in seconds. A camera that can do more, like external triggers, has a
        `trigger_logic` of its own. `config` gives shape and type of the images, which drivers need that do
        not report them. `start_options` are further fields of the driver's `start`, like `writer_id`.
        `other_drivers` are the URLs of those that record further parts of the same images, in the same run:
        documents reference the images of the driver at `url`, and the master file over the parts shows all.
        `nexus` and `engine` are those of `StdDaqDetector`; signals are those of ophyd-async.
        """
        self.url, token = split_token(url, None)
        self._paths = paths
        self._camera = as_async_camera(trigger, trigger_value)
        self._start_options = dict(start_options or {})
        self._drivers = Drivers(self.url, other_drivers, token)
        self._values = RunValues(name or "detector", nexus, engine)
        self.driver = AsyncDriver(self.url, token)
        self.n_ready, self._set_n_ready = soft_signal_r_and_setter(int, 0)
        self.allow_bad = soft_signal_rw(bool, False)
        self.stream = soft_signal_rw(str, "")
        self.image_height, self._set_height = soft_signal_r_and_setter(int, 0, units="pixels")
        self.image_width, self._set_width = soft_signal_r_and_setter(int, 0, units="pixels")
        self.pixel_type, self._set_pixel_type = soft_signal_r_and_setter(str, "")
        self.bit_depth, self._set_bit_depth = soft_signal_r_and_setter(int, 0)
        self.number_of_writers, self._set_number_of_writers = soft_signal_r_and_setter(int, 0)
        self.directory, self._set_directory = soft_signal_r_and_setter(str, "")
        self.file_prefix, self._set_file_prefix = soft_signal_r_and_setter(str, "")
        self._shape: tuple[int, int] | None = None
        self._dtype = ""
        if config is not None:
            loaded = config if isinstance(config, DetectorConfig) else DetectorConfig.load(config)
            self._note_layout(loaded.image_shape, loaded.dtype.str, loaded.number_of_writers)

        # For the path provider, which lists directories.
        self._blocking = Worker("paths of a detector")
        self._info = TriggerInfo()
        # Whether `prepare` runs, whether what it started waits for a trigger, and whether a reading waits for
        # its documents.
        self._is_preparing = self._is_armed = self._is_read = False
        self._operations = Operations()
        self.add_detector_logics(
            trigger_logic or ExposureLogic(exposure_time, n_frames, deadtime),
            AcquireLogic(self),
            ImageLogic(self),
        )
        self.add_config_signals(
            self.driver.url,
            self.allow_bad,
            self.image_height,
            self.image_width,
            self.pixel_type,
            self.bit_depth,
            self.number_of_writers,
            self.directory,
            self.file_prefix,
        )
        super().__init__(name=name)

    @property
    def _recorder(self) -> Recorder | None:
        return self._operations.recorder

    @property
    def n_recorded(self) -> SignalR[int]:
        """Return the number of recorded images of the newest run."""
        return self.driver.n_recorded

    @property
    def n_bad(self) -> SignalR[int]:
        """Return the number of bad images of the newest run."""
        return self.driver.n_bad

    @property
    def error(self) -> Exception | None:
        """Return the first failure since the device was staged."""
        return self._recorder.acquisition.error if self._recorder else None

    @property
    def orphans(self) -> dict[str, int]:
        """Return the numbers of recorded images that are in no document, by reason, after unstaging."""
        return dict(self._recorder.acquisition.orphans) if self._recorder else {}

    async def disconnect(self) -> None:
        """End a run that is open, and the connection to the driver."""
        await self.close_run()
        await self.driver.disconnect()

    # Driver runs.

    async def open_run(self) -> None:
        """Start a driver run in new files. Raise `AcquisitionError` with the driver's reason."""
        if "bluesky_tiled_plugins.writing.consolidators" in sys.modules:
            from stddaq_ophyd import tiled_export

            tiled_export.register()
        paths = await self._blocking.run(next_paths, self._paths, self.name)
        self._set_directory(str(paths.directory))
        self._set_file_prefix(paths.prefix)
        options = with_nexus(self._start_options, await self._values.read(self._blocking.run))
        acquisition = self._acquisition(paths, options)
        self._operations.recorder = Recorder(acquisition, self._set_n_ready)
        self._set_n_ready(0)
        run = await acquisition.start_run()
        if run.image_shape and run.dtype:
            self._note_layout(run.image_shape, run.dtype, len(run.raw_files))

    def _acquisition(self, paths: PathInfo, options: Mapping[str, Any]) -> Acquisition:
        if self._mock is not None:
            height, width = self._shape or MOCK_SHAPE
            self._note_layout((height, width), self._dtype or MOCK_TYPE, 1)
            n_bytes = height * width * np.dtype(self._dtype).itemsize
            return MockAcquisition(self.url, self.name, paths, n_bytes)
        publication = Publication(self.name, paths, self.name, StreamDocuments())
        late = self._values.late
        return Acquisition(self._drivers, self.name, options, publication, self._camera, late)

    async def close_run(self) -> None:
        """End the driver run. Does not raise; see `error`."""
        self._is_armed = self._is_read = False
        if self._recorder is not None:
            await self._recorder.close()

    def _note_layout(self, shape: tuple[int, int], dtype: str, number_of_writers: int) -> None:
        self._shape, self._dtype = shape, dtype
        self._set_height(shape[0])
        self._set_width(shape[1])
        self._set_pixel_type(dtype)
        self._set_bit_depth(8 * int(dtype[2:]))
        self._set_number_of_writers(number_of_writers)

    # Points and flights.

    @AsyncStatus.wrap
    async def stage(self) -> None:
        """Let the driver become idle; `prepare` or the first trigger starts a run."""
        await self._end_operations()
        await super().stage()
        self._operations.recorder = None

    @AsyncStatus.wrap
    async def unstage(self) -> None:
        """End the driver run. Fail when that fails, or when a flight was not collected."""
        await self._end_operations()
        known = self.error
        await super().unstage()
        if self.error is not None and self.error is not known:
            raise self.error

    @AsyncStatus.wrap
    async def prepare(self, value: TriggerInfo | int) -> None:
        """Set what the next trigger or kickoff takes, and start a driver run unless one is open.

        A number is that of the events, as for `stddaq_ophyd.plans.fly`.
        """
        info = value if isinstance(value, TriggerInfo) else TriggerInfo(number_of_events=value)
        if info.number_of_events < 1:
            # `complete` would be done at once, with the camera running.
            raise SettingError(mismatch(f"{self.name}: number_of_events", "a number from 1", "0"))
        await self._operations.run(self._prepare(info))

    async def _prepare(self, info: TriggerInfo) -> None:
        await self._settle()
        self._info, self._is_preparing = info, True
        try:
            with contextlib.suppress(AcquisitionStoppedError):
                await super().prepare(info)
        finally:
            self._is_preparing = False

    @WatchableAsyncStatus.wrap
    async def trigger(self) -> AsyncIterator[WatcherUpdate[int]]:
        """Take the images of a point. Fail as soon as they cannot come any more."""
        if not self._is_armed:
            await self._operations.run(self._settle())
        self._is_read = False
        async for update in self._operations.until_failure(_trigger(self)):
            yield update

    @AsyncStatus.wrap
    async def kickoff(self) -> None:
        """Start a flight. Done when the camera was triggered."""
        await self._operations.run(self._kickoff())

    async def _kickoff(self) -> None:
        if not self._is_external:
            await self._settle()
        with contextlib.suppress(AcquisitionStoppedError):
            await super().kickoff()
            if self._is_external:
                await self._release()

    @WatchableAsyncStatus.wrap
    async def complete(self) -> AsyncIterator[WatcherUpdate[int]]:
        """Wait for the images of the flight. Fail as soon as they cannot come any more."""
        async for update in self._operations.until_failure(_complete(self)):
            yield update
        if not self._is_external:
            await self.finish_taking()

    async def _end_operations(self) -> None:
        self._is_armed = False
        await self._operations.end()

    @property
    def _is_external(self) -> bool:
        return self._info.trigger != DetectorTrigger.INTERNAL

    async def _settle(self) -> None:
        """Put the count of images back to those whose documents were emitted."""
        self._is_armed = False
        if self._recorder is not None:
            await self._recorder.settle()

    async def start_taking(self) -> None:
        """Take what was prepared; for an external trigger already when it is prepared.

        Return when the camera was triggered.
        """
        if self._operations.are_ending:
            raise AcquisitionStoppedError(f"{self.name}: stopped")
        if self._is_preparing:
            await self._start(self._info.number_of_events)
            self._is_armed = True
            return
        if not self._is_armed:
            await self._start(await self.events_to_kickoff.get_value())
        self._is_armed = False
        await self._release()

    async def _start(self, n_events: int) -> None:
        assert self._recorder is not None
        settings = Settings(
            images_per_event=self._info.collections_per_event,
            timeout=self._info.exposure_timeout,
            each_image=True,
            allow_bad=await self.allow_bad.get_value(),
        )
        await self._recorder.start(n_events, settings)

    async def _release(self) -> None:
        """Let the images of this trigger or kickoff count."""
        if self._recorder is not None:
            self._recorder.release(await self.events_to_kickoff.get_value())

    async def finish_taking(self) -> None:
        """Return when all images can be announced. Raise `AcquisitionError`."""
        if self._recorder is not None:
            await self._recorder.finish()

    # The RunEngine.

    async def pause(self) -> None:
        """End the exposure of a point, which is taken again; a flight goes on, and refuses a replay."""
        if self._recorder is not None and self._recorder.acquisition.has_flight:
            raise NoReplayAllowed(f"{self.name} is in a flight")
        await self._end_operations()

    async def resume(self) -> None:
        """Do nothing: the RunEngine triggers the point again."""

    async def describe(self) -> dict[str, DataKey]:
        """Return the description of the images, which documents reference."""
        await self._expect_new_stream()
        return await super().describe()

    async def describe_collect(self) -> dict[str, DataKey]:
        """Return the description of the images; their documents come by `collect`."""
        await self._expect_new_stream()
        return await super().describe_collect()

    async def _expect_new_stream(self) -> None:
        # A RunEngine asks once for each stream of each run, before its first documents.
        if is_description_for_documents() and self._recorder is not None:
            await self._recorder.acquisition.expect_new_stream(
                self._info.collections_per_event, await self.stream.get_value()
            )

    async def read(self) -> dict[str, Reading]:
        """Return nothing but let the next documents be those of an event."""
        self._is_read = True
        return await super().read()

    async def documents(self, n_images: int) -> list[StreamAsset]:
        """Return the documents of what is recorded and not announced, up to `n_images` of this staging."""
        if self._recorder is None:
            return []
        is_event, self._is_read = self._is_read, False
        stream = await self.stream.get_value()
        found: Any = await self._recorder.documents(n_images, stream, of_event=is_event)
        return found

    def data_keys(self, images_per_event: int) -> dict[str, DataKey]:
        """Return the description of the images. Raise `AcquisitionError` when shape or type are unknown."""
        if self._shape is None:
            raise AcquisitionError(
                f"{self.name}: shape and type of the images are unknown, because the driver {self.url} "
                "does not report them; give the device the configuration of its detector (config=...)"
            )
        return {
            self.name: DataKey(
                source=self.url,
                dtype="array",
                dtype_numpy=self._dtype,
                shape=[images_per_event, *self._shape],
                dims=["image", "y", "x"],
                external=StreamDocuments.external,
            )
        }
