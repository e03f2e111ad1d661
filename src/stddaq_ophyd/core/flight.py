"""A flight: images that are recorded, and published, while the plan does something else."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from stddaq.text import mismatch
from stddaq_ophyd.core.camera import Exposure
from stddaq_ophyd.core.driver_run import DriverRun, OnProgress
from stddaq_ophyd.core.errors import AcquisitionError
from stddaq_ophyd.core.publication import PublishedStream
from stddaq_ophyd.core.ready_images import ReadyImages
from stddaq_ophyd.core.run_counts import RunCounts
from stddaq_ophyd.core.run_files import SETTLE_PERIOD_S, check_bad, feed_from_closed, feed_from_growing
from stddaq_ophyd.core.settings import Settings
from stddaq_ophyd.core.worker import Worker

# Reading the ids of a growing file takes 0.4 ms, writing the published images file 1 ms.
READ_PERIOD_S = 0.25


@dataclass(slots=True)
class Flight:
    """One flight. `guard` guards its queue, which is filled in one task and published in another.

    Attributes:
        before: the counts of the run when the flight began.
        exposure: what the camera takes.
        last_id: the id of an earlier image of the run, if it is known.
        device: begins every message.
        files: the thread that reads files.
        is_complete: whether all images are in the queue.
        has_failed: whether images did not come, or were not wanted any more.
        stream: where its documents went, after the first ones.
        read_at: when the files were last read, in seconds of the monotonic clock.
    """

    n_events: int
    settings: Settings
    run: DriverRun
    before: RunCounts
    exposure: Exposure
    last_id: int | None
    device: str
    files: Worker
    guard: asyncio.Lock
    images: ReadyImages = field(init=False)
    is_complete: bool = False
    has_failed: bool = False
    stream: PublishedStream | None = None
    read_at: float = 0.0

    def __post_init__(self) -> None:
        self.images = ReadyImages(
            self.before,
            self.n_images,
            may_restart=False,
            first_id=self.exposure.first_id,
            last_id=self.last_id,
        )
        self.images.is_ordered = self.run.is_live

    @property
    def n_images(self) -> int:
        """Return the number of images of the whole flight."""
        return self.n_events * self.settings.images_per_event

    @property
    def is_collected(self) -> bool:
        """Return whether all images left the queue for documents."""
        return self.is_complete and self.images.n_taken == self.n_images

    @property
    def n_ready_events(self) -> int:
        """Return the number of events whose images are, or were, in the queue."""
        return self.images.n_ready // self.settings.images_per_event

    def not_collected(self) -> AcquisitionError:
        """Return the error of a flight that is followed by something else before it was collected."""
        n_collected = self.images.n_taken // self.settings.images_per_event
        return AcquisitionError(
            mismatch(
                self.device,
                f"a flight of {self.n_events} events that was collected",
                f"{n_collected} events collected",
                "complete and collect come before the next flight or point",
            )
        )

    async def finish(self, on_progress: OnProgress) -> RunCounts:
        """Return the counts of the run when all images can be published. Raises `AcquisitionError`."""
        try:
            after = await self._complete(await self._wait_for(self.n_images, on_progress))
            check_bad(self.run, self.images, after, self.device, allow_bad=self.settings.allow_bad)
        except BaseException:
            self.has_failed = True
            raise
        self.is_complete = True
        return after

    async def _wait_for(self, n_images: int, on_progress: OnProgress = lambda n, counts: None) -> RunCounts:
        return await self.run.wait_for(
            n_images,
            self.before,
            self.settings.timeout,
            self.exposure,
            restart_on_progress=True,
            on_progress=on_progress,
        )

    async def _complete(self, after: RunCounts) -> RunCounts:
        """Wait until the queue is complete, or else close the run and complete it from the files."""
        deadline = time.monotonic() + self.settings.timeout
        while self.images.is_ordered and self.settings.publish_live and time.monotonic() < deadline:
            async with self.guard:
                await self._read_files()
                if self.images.is_complete:
                    return after
            if self.images.n_early:
                after = await self._wait_for(self.n_images + self.images.n_early)
            await asyncio.sleep(SETTLE_PERIOD_S)
        await feed_from_closed(self.run, self.images, self.n_images, self.device, self.files, self.guard)
        return after

    async def read_files_when_due(self) -> None:
        """Add what has become readable to the queue, unless that was done a moment ago. `guard` is held."""
        is_due = time.monotonic() - self.read_at >= READ_PERIOD_S
        if is_due and not self.is_complete and self.settings.publish_live:
            await self._read_files()

    async def _read_files(self) -> None:
        if self.run.is_live and self.images.is_ordered and self.run.is_open:
            self.read_at = time.monotonic()
            await feed_from_growing(self.run, self.images, await self.run.counts(), self.files)
