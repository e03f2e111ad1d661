"""Plays driver and camera for an ophyd-async device in mock mode: all images come at once, into no file."""

from __future__ import annotations

from collections.abc import Callable

from stddaq_ophyd.core.acquisition import Acquisition
from stddaq_ophyd.core.documents import Document, ImageSource, StreamComposer, StreamDocuments
from stddaq_ophyd.core.driver_group import Drivers
from stddaq_ophyd.core.driver_run import DriverRun, OnProgress
from stddaq_ophyd.core.paths import PathInfo
from stddaq_ophyd.core.publication import Publication
from stddaq_ophyd.core.run_counts import RunCounts
from stddaq_ophyd.core.settings import Settings
from stddaq_ophyd.core.worker import Worker


class MockAcquisition(Acquisition):
    """Counts images and composes their documents, without a connection."""

    def __init__(self, url: str, device: str, paths: PathInfo, image_bytes: int) -> None:
        drivers = Drivers(url)
        super().__init__(drivers, device, {}, Publication(device, paths, device, StreamDocuments()))
        self._run = DriverRun(drivers, paths, {}, device, Worker(f"mock of {device}"))
        self._paths, self._image_bytes = paths, image_bytes
        self._composers: list[StreamComposer] = []
        self._images_per_event = 1
        # Events of the newest point or flight, and those of them that are in documents.
        self._n_taken = self._n_composed = 0

    @property
    def n_announced(self) -> int:
        return sum(composer.n_published for composer in self._composers) * self._images_per_event

    @property
    def n_ready_images(self) -> int:
        return self._n_taken * self._images_per_event

    async def start_run(self) -> DriverRun:
        assert self._run is not None
        return self._run

    async def take_point(
        self,
        settings: Settings,
        on_progress: OnProgress = lambda n, counts: None,
        on_fired: Callable[[], None] = lambda: None,
    ) -> RunCounts:
        await self.start_flight(1, settings)
        on_fired()
        return RunCounts(settings.images_per_event)

    async def start_flight(self, n_events: int, settings: Settings) -> None:
        self._n_taken, self._n_composed, self._images_per_event = n_events, 0, settings.images_per_event

    async def finish_flight(self, on_progress: OnProgress = lambda n, counts: None) -> RunCounts:
        return RunCounts(self.n_ready_images)

    async def n_ready_events(self) -> int:
        return self._n_taken

    async def settle(self) -> None:
        self._n_taken = self._n_composed = 0

    async def close(self) -> None:
        """Do nothing."""

    async def expect_new_stream(self, images_per_event: int, name: str = "") -> None:
        self._images_per_event = images_per_event
        source = ImageSource(
            data_key=self._device,
            path=self._paths.read_directory / f"{self._paths.prefix}mock.h5",
            images_per_event=images_per_event,
            event_bytes=images_per_event * self._image_bytes,
            swmr=False,
            number_of_writers=1,
            raw_files=f"{self._paths.prefix}{{writer}}.h5",
        )
        self._composers.append(StreamComposer(source))

    async def documents(
        self, limit: int | None = None, stream: str = "", *, of_event: bool = False
    ) -> list[Document]:
        if not self._composers:
            await self.expect_new_stream(self._images_per_event)
        composer = self._composers[-1]
        n_events = self._n_taken if limit is None else min(limit, self._n_taken)
        first, self._n_composed = self._n_composed, n_events
        return list(composer.compose(composer.n_published + n_events - first))
