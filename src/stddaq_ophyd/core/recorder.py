"""Take points and flights in tasks, and count the images that documents may announce."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from stddaq_ophyd.core.acquisition import Acquisition
from stddaq_ophyd.core.documents import Document
from stddaq_ophyd.core.errors import AcquisitionStoppedError
from stddaq_ophyd.core.run_counts import RunCounts
from stddaq_ophyd.core.settings import Settings

# How often the files of a flight are read, at most; more often when an image has to come earlier.
READ_PERIOD_S = 0.25


class Recorder:
    """Takes one point or flight at a time. Use it in one event loop.

    Attributes:
        acquisition: what the images are recorded with.
        n_ready: images of this acquisition that were announced, or may be. It falls only in `settle`.
    """

    def __init__(self, acquisition: Acquisition, on_ready: Callable[[int], None]) -> None:
        """`on_ready` receives each new value of `n_ready`."""
        self.acquisition = acquisition
        self.n_ready = 0
        self._on_ready = on_ready
        self._n_before, self._images_per_event = 0, 1
        self._n_taken = self._n_released = 0
        self._task: asyncio.Task[None] | None = None

    @property
    def task(self) -> asyncio.Task[None] | None:
        """Return the task that takes the images of the newest point or flight, until that is settled."""
        return self._task

    async def settle(self) -> None:
        """End what was taken before, and put the count back to the images whose documents were emitted.

        Raises `AcquisitionError` when a flight was not collected.
        """
        await self.end()
        await self.acquisition.settle()
        self._n_before = self._n_released = self.acquisition.n_announced
        self._note(self._n_before)

    async def start(self, n_events: int, settings: Settings) -> None:
        """Take `n_events` in a task. Return when the camera was triggered. Raises `AcquisitionError`.

        They count from `release` on.
        """
        await self.settle()
        self._images_per_event = settings.images_per_event
        fired = asyncio.Event()
        taking = self._take_point if n_events == 1 else partial(self._fly, n_events)
        self._task = task = asyncio.create_task(taking(settings, fired.set))
        task.add_done_callback(lambda _: fired.set())
        await fired.wait()
        if task.done():
            raise_failure(task)

    def release(self, n_events: int) -> None:
        """Let `n_events` more count. Those of an external trigger may come before they are asked for."""
        self._n_released += n_events * self._images_per_event
        self._note(self._n_taken)

    async def _take_point(self, settings: Settings, on_fired: Callable[[], None]) -> None:
        def progress(n_images: int, counts: RunCounts) -> None:
            # The last one counts when all are readable.
            self._note(self._n_before + min(n_images, settings.images_per_event - 1))

        await self.acquisition.take_point(settings, progress, on_fired)
        self._note(self._n_before + settings.images_per_event)

    async def _fly(self, n_events: int, settings: Settings, on_fired: Callable[[], None]) -> None:
        await self.acquisition.start_flight(n_events, settings)
        on_fired()
        reading = asyncio.create_task(self._read_flight(settings))
        try:
            await self.acquisition.finish_flight()
        finally:
            reading.cancel()
            await asyncio.wait([reading])
        self._note(self._n_before + self.acquisition.n_ready_images)

    async def _read_flight(self, settings: Settings) -> None:
        while True:
            await asyncio.sleep(min(READ_PERIOD_S, settings.timeout / 4))
            await self.acquisition.n_ready_events()
            self._note(self._n_before + self.acquisition.n_ready_images)

    async def finish(self) -> None:
        """Return when the images of the newest point or flight can be announced.

        Raises `AcquisitionError`.
        """
        if (task := self._task) is not None:
            await asyncio.wait([task])
            raise_failure(task)

    async def end(self) -> None:
        """Stop taking images. Does not raise."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                task.exception()  # The acquisition keeps it.

    async def documents(self, n_images: int, stream: str, *, of_event: bool) -> list[Document]:
        """Return the documents of what was taken and not announced, up to image `n_images`.

        Raises `AcquisitionError` as `Acquisition.documents`.
        """
        n_events = (n_images - self._n_before) // self._images_per_event
        return await self.acquisition.documents(n_events, stream, of_event=of_event)

    async def close(self) -> None:
        """End the run, and write the published images files a last time. Does not raise."""
        await self.end()
        await self.acquisition.close()

    def _note(self, n_taken: int) -> None:
        self._n_taken = n_taken
        n_ready = min(n_taken, self._n_released)
        # An unchanged value would pass for progress.
        if n_ready != self.n_ready:
            self.n_ready = n_ready
            self._on_ready(n_ready)


def raise_failure(task: asyncio.Task[None]) -> None:
    """Raise the error of a task that is done; `AcquisitionStoppedError` when it was cancelled."""
    if task.cancelled():
        raise AcquisitionStoppedError("the device was stopped before its images were recorded")
    if (error := task.exception()) is not None:
        raise error
