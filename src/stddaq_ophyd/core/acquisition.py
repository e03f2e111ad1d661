"""What a device records between staging and unstaging: points one by one, or a flight.

An acquisition is one driver run when its files can be read while they grow. Otherwise, and when only closed
files can show the order of images, each point is a driver run.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

from stddaq.text import mismatch
from stddaq_ophyd.core.account import Account
from stddaq_ophyd.core.camera import Camera, CameraControl, Exposure
from stddaq_ophyd.core.documents import Document
from stddaq_ophyd.core.driver_group import Drivers
from stddaq_ophyd.core.driver_run import DriverRun, LateMetadata, OnProgress, nothing_late
from stddaq_ophyd.core.errors import AcquisitionError, AcquisitionStoppedError
from stddaq_ophyd.core.failures import Failures
from stddaq_ophyd.core.flight import Flight
from stddaq_ophyd.core.paths import PathInfo
from stddaq_ophyd.core.publication import Point, Publication
from stddaq_ophyd.core.ready_images import ReadyImages
from stddaq_ophyd.core.run_counts import RunCounts
from stddaq_ophyd.core.run_files import SETTLE_PERIOD_S, check_bad, feed_from_closed, feed_point
from stddaq_ophyd.core.scalars import Scalars, scalars_of
from stddaq_ophyd.core.settings import Settings
from stddaq_ophyd.core.worker import Worker, uninterrupted


class Acquisition:
    """Records images with driver runs, and publishes them.

    Use it in one event loop, which it does not block; `stop` and `allow_restart` may be called from any
    thread. Call `start_run`, the methods that take images, and `close` one after the other. A method that
    takes images may be cancelled. All others may run beside them.
    """

    def __init__(
        self,
        drivers: Drivers,
        device: str,
        options: Mapping[str, Any],
        publication: Publication,
        camera: Camera | None = None,
        late: LateMetadata = nothing_late,
    ) -> None:
        """`options` are further fields of the driver's `start`; `device` begins every message; `late` returns
        metadata that are known when a run ends."""
        self._drivers, self._device, self._options, self._late = drivers, device, dict(options), late
        self._publication = publication
        self._camera = CameraControl(camera, device)
        self._failures, self._account = Failures(device), Account(device)
        # Of point, flight and publication, which tasks and the thread of `files` use.
        self._guard = asyncio.Lock()
        self._files = Worker(f"files of {device}")
        self._run: DriverRun | None = None
        self._runs: list[DriverRun] = []
        # The number of those that were left for files elsewhere.
        self._n_left = 0
        self._is_stopped = False
        # The id of the last image of a point that came whole, and whose camera knew the first one.
        self._last_id: int | None = None
        self._point: Point | None = None
        self._flight: Flight | None = None

    @property
    def error(self) -> AcquisitionError | None:
        """Return the first failure."""
        return self._failures.first

    @property
    def n_announced(self) -> int:
        """Return the number of recorded images that are in documents; complete after `close`."""
        return self._account.n_announced

    @property
    def orphans(self) -> Counter[str]:
        """Return the numbers of recorded images in no document, by reason; complete after `close`."""
        return self._account.orphans

    # Recording.

    async def start_run(self) -> DriverRun:
        """Start a driver run unless one is open. On `AcquisitionError` nothing is left open."""
        if self._is_stopped:
            raise AcquisitionStoppedError(f"{self._device}: stopped")
        if self._run is not None and self._run.is_open:
            return self._run
        paths = self._publication.paths
        if part := len(self._runs) - self._n_left:
            paths = dataclasses.replace(paths, prefix=f"{paths.prefix}part{part + 1}_")
        self._run = DriverRun(self._drivers, paths, self._options, self._device, self._files, self._late)
        self._runs.append(self._run)
        with self._failures.kept():
            # The driver would go on with a run whose start was cancelled.
            await uninterrupted(self._run.open())
        return self._run

    @property
    def is_misplaced(self) -> bool:
        """Return whether the files belong elsewhere, and nothing was taken yet."""
        is_unused = self._point is None and self._flight is None and not self._publication.files
        return is_unused and self._publication.paths.is_outdated()

    async def move_to(self, paths: PathInfo) -> DriverRun:
        """Record into files elsewhere from now on. Raises `AcquisitionError`."""
        if self._run is not None:
            await uninterrupted(self._run.discard())
        self._n_left = len(self._runs)
        self._publication.move_to(paths)
        return await self.start_run()

    async def take_point(
        self,
        settings: Settings,
        on_progress: OnProgress = lambda n, counts: None,
        on_fired: Callable[[], None] = lambda: None,
    ) -> RunCounts:
        """Take the images of one point. Return when they are recorded and readable.

        `on_fired` is called when the camera was triggered. Returns the counts of the run. Raises
        `AcquisitionError`.
        """
        n = settings.images_per_event
        async with self._taking():
            run = await self.start_run()
            # Asking the driver takes a millisecond. Without it, earlier images are known by their ids.
            last_id, self._last_id = self._last_id, None
            needs_first_id = last_id is not None
            before = await (run.latest_counts() if needs_first_id else run.counts())
            exposure = await self._camera.fire(n)
            if needs_first_id and exposure.first_id is None:
                raise AcquisitionError(
                    mismatch(f"{self._device}: camera", "the id of the first image, as before", "none")
                )
            on_fired()
            if run.is_live and settings.publish_live:
                self._files.submit(partial(self._publication.prepare_point, n))
            images = ReadyImages(before, n, may_restart=True, first_id=exposure.first_id, last_id=last_id)
            after = await run.wait_for(
                n,
                before,
                settings.timeout,
                exposure,
                restart_on_progress=settings.each_image,
                on_progress=on_progress,
            )
            after, is_live, scalars = await self._read_point(run, images, after, exposure, settings)
            check_bad(run, images, after, self._device, allow_bad=settings.allow_bad)
        async with self._guard:
            self._account.add_early(images.n_early)
            taken = images.take(n)
            self._point = Point(taken, is_live, scalars)
        if exposure.first_id is not None:
            self._last_id = int(taken.ids[-1])
        return after

    async def _read_point(
        self,
        run: DriverRun,
        images: ReadyImages,
        after: RunCounts,
        exposure: Exposure,
        settings: Settings,
    ) -> tuple[RunCounts, bool, Scalars | None]:
        """Complete the queue of a point. Return the counts, whether its files may still grow, and scalars."""
        n, deadline = settings.images_per_event, time.monotonic() + settings.timeout
        growing = run.growing_files if settings.publish_live else None
        while growing is not None and images.is_ordered:
            scalars = await self._files.run(feed_point, growing, images, after, settings.scalars)
            if images.is_complete:
                return after, True, scalars
            left = deadline - time.monotonic()
            if images.is_ordered and left < 0:
                if images.n_early and not images.n_ready:
                    raise AcquisitionError(
                        mismatch(
                            self._device,
                            f"image {exposure.first_id}, the first one according to the camera",
                            f"{images.n_early} others in {run.where}",
                        )
                    )
                raise AcquisitionError(
                    mismatch(
                        self._device,
                        f"{n} readable images in {run.where}",
                        str(images.n_ready),
                        "is one of the files open in this process?",
                    )
                )
            if images.n_early:
                # Those of this point come after them.
                after = await run.wait_for(n + images.n_early, images.before, max(left, 0.0), exposure)
            if images.is_ordered:
                # More images came than were waited for, and a writer has not flushed its part of the first.
                await asyncio.sleep(SETTLE_PERIOD_S)
        await feed_from_closed(run, images, n, self._device, self._files, self._guard)
        scalars = None
        if settings.scalars:
            scalars = await self._files.run(scalars_of, images.queue, settings.scalars)
        return after, False, scalars

    @property
    def scalars(self) -> Scalars | None:
        """Return what was wanted of the images of the last point."""
        return self._point.scalars if self._point else None

    async def start_flight(self, n_events: int, settings: Settings) -> None:
        """Start a flight of `n_events`. Return when the camera was triggered. Raises `AcquisitionError`."""
        last_id, self._last_id = self._last_id, None
        async with self._taking():
            run = await self.start_run()
            before = await run.counts()
            exposure = await self._camera.fire(n_events * settings.images_per_event)
            async with self._guard:
                self._flight = Flight(
                    n_events, settings, run, before, exposure, last_id, self._device, self._files, self._guard
                )

    @property
    def has_flight(self) -> bool:
        """Return whether the newest images are those of a flight, which is not taken twice."""
        return self._flight is not None

    async def finish_flight(self, on_progress: OnProgress = lambda n, counts: None) -> RunCounts:
        """Return when all images of the flight are recorded and can be published.

        Returns the counts of the run. Raises `AcquisitionError`.
        """
        flight = self._flight
        if flight is None:
            raise AcquisitionError(f"{self._device}: no flight was started; kickoff comes first")
        async with self._camera_stopped_on_failure():
            return await flight.finish(on_progress)

    @asynccontextmanager
    async def _taking(self) -> AsyncIterator[None]:
        """Take images within it: what was taken before must be published, or not wanted any more.

        Raises `AcquisitionError` when a flight was not collected.
        """
        async with self._camera_stopped_on_failure():
            await self.settle()
            yield

    async def settle(self) -> None:
        """Account for the images of the last point or flight, of which nothing more is published.

        Raises `AcquisitionError` when a flight was not collected.
        """
        async with self._guard:
            flight = self._flight
            if flight is not None and not flight.is_collected and not flight.has_failed:
                raise flight.not_collected()
            self._settle()

    def _settle(self) -> None:
        """Account for the images of the last point or flight."""
        point, flight = self._point, self._flight
        self._point = self._flight = None
        if point is not None:
            is_published = self._publication.is_published(point)
            self._account.add_point(len(point.images), is_published=is_published)
        if flight is not None:
            self._account.add_flight(flight)

    def stop(self) -> None:
        """Make waits for images, and for a camera that starts, fail with `AcquisitionStoppedError`."""
        self._is_stopped = True
        self._camera.cancel()
        if self._run is not None:
            self._run.cancel()

    def allow_restart(self) -> None:
        """After `stop`, let images be taken again, into new files."""
        self._is_stopped = False
        self._camera.allow_restart()

    async def close(self) -> None:
        """End the run, and write the published images files a last time. Does not raise; see `error`."""
        try:
            await self._camera.stop()
        except AcquisitionError as error:
            self._failures.keep(error)
        if self._run is not None:
            await self._run.close()
            if self._run.error is not None:
                self._failures.keep(self._run.error)

        async with self._guard:
            flight = self._flight
            if flight is not None and flight.is_complete and not flight.is_collected:
                self._failures.keep(flight.not_collected())
            self._settle()
            for error in await self._files.run(self._publication.close):
                self._failures.keep(error)
            miscounted = self._account.close(sum(run.n_recorded for run in self._runs))
            if miscounted is not None:
                self._failures.keep(miscounted)

    # Publishing.

    async def expect_new_stream(self, images_per_event: int, name: str = "") -> None:
        """The next documents of stream `name` belong to another stream, or run, than those before.

        Its events were described with `images_per_event`.
        """
        async with self._guard:
            self._publication.expect_new_stream(images_per_event, name)

    async def documents(
        self, limit: int | None = None, stream: str = "", *, of_event: bool = False
    ) -> list[Document]:
        """Return documents of what was recorded and not published yet, of a flight up to event `limit`.

        They continue those of the same `stream`; without a name, those before. Raises `AcquisitionError` when
        the files do not show what was recorded, and when the documents are those `of_event` and no point
        belongs to it.
        """
        async with self._guard:
            with self._failures.kept():
                if self._flight is not None and not self._flight.is_collected:
                    return await self._documents_of_flight(self._flight, limit, stream)
                documents: list[Document] = []
                if self._point is not None:
                    documents = await self._files.run(self._publication.publish_point, self._point, stream)
                if of_event and not documents:
                    raise AcquisitionError(
                        mismatch(
                            self._device,
                            "a point for each event",
                            "an event without",
                            "trigger comes before read",
                        )
                    )
                return documents

    async def _documents_of_flight(self, flight: Flight, limit: int | None, stream: str) -> list[Document]:
        await flight.read_files_when_due()
        n_events = min(flight.n_ready_events, flight.n_events if limit is None else limit)
        n = n_events * flight.settings.images_per_event - flight.images.n_taken
        if n <= 0:
            return []
        flight.stream, documents = await self._files.run(
            self._publication.publish_events,
            flight.images.take(n),
            flight.settings.images_per_event,
            live=flight.run.is_live,
            name=stream,
        )
        return documents

    async def withdraw_point(self) -> None:
        """Forget that the last point was published; its documents are not emitted."""
        async with self._guard:
            if self._point is not None:
                self._publication.withdraw_point(self._point)

    async def n_ready_events(self) -> int:
        """Return the number of events of the flight that can be published, or were."""
        async with self._guard:
            if self._flight is None:
                return 0
            await self._flight.read_files_when_due()
            return self._flight.n_ready_events

    @property
    def n_ready_images(self) -> int:
        """Return the number of images of the flight that can be published, or were."""
        return self._flight.images.n_ready if self._flight else 0

    # Errors.

    @asynccontextmanager
    async def _camera_stopped_on_failure(self) -> AsyncIterator[None]:
        """Keep and raise failures, and stop the camera: its images are not wanted."""
        with self._failures.kept():
            try:
                yield
            except BaseException:
                # The reason of the failure says more than one of the camera.
                with suppress(AcquisitionError):
                    await self._camera.stop()
                raise
