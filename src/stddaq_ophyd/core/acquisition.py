"""What a device records between staging and unstaging: points one by one, or a flight.

An acquisition is one driver run when its files can be read while they grow. Otherwise, and when only closed
files can show the order of images, each point is a driver run.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from stddaq.errors import FileLayoutError
from stddaq.files.growing_run import GrowingFiles, Images, in_order, of_closed_run
from stddaq.files.run import read_run
from stddaq.text import mismatch
from stddaq_ophyd.core.camera import Camera, CameraControl, Exposure
from stddaq_ophyd.core.documents import Document
from stddaq_ophyd.core.driver_run import DriverRun, OnProgress
from stddaq_ophyd.core.errors import AcquisitionError, AcquisitionStoppedError
from stddaq_ophyd.core.publication import Point, Publication, PublishedStream
from stddaq_ophyd.core.ready_images import ReadyImages
from stddaq_ophyd.core.run_counts import RunCounts
from stddaq_ophyd.core.scalars import Region, Scalars, scalars_of

# Reading the ids of a growing file takes 0.6 ms, writing the published images file 2 ms.
FLIGHT_PERIOD_S = 0.25
# A writer flushes within a few milliseconds.
SETTLE_PERIOD_S = 0.01

# Why recorded images are in no document.
EARLIER = "earlier triggers"
UNREAD = "points without an event"
UNCOLLECTED = "flights without documents"
OUTSIDE = "outside of points or in failed ones"


@dataclass(frozen=True, slots=True)
class Settings:
    """How images are taken.

    Attributes:
        images_per_event: images of one point, or of one event of a flight.
        timeout: seconds in which the images of a point must come; in a flight, each image after the last.
        allow_bad: whether damaged, overwritten, failed and skipped images are accepted.
        publish_live: whether images may be published before their files are closed.
    """

    images_per_event: int
    timeout: float
    allow_bad: bool = False
    publish_live: bool = True


@dataclass(slots=True)
class Flight:
    """Images that are recorded while the plan does something else.

    Attributes:
        before: the counts of the run when the flight began.
        exposure: what the camera takes.
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
    images: ReadyImages = field(init=False)
    is_complete: bool = False
    has_failed: bool = False
    stream: PublishedStream | None = None
    read_at: float = 0.0

    def __post_init__(self) -> None:
        self.images = ReadyImages(
            self.before, self.n_images, may_restart=False, first_id=self.exposure.first_id
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


class Acquisition:
    """Records images with driver runs, and publishes them.

    `start_run`, the methods that take images, and `close` block; call them from one thread. All others may be
    called from any thread.

    Attributes:
        error: the first failure.
        n_announced: recorded images that are in documents; complete after `close`.
        orphans: recorded images that are in no document, by reason; complete after `close`.
    """

    def __init__(
        self,
        url: str,
        device: str,
        options: Mapping[str, Any],
        publication: Publication,
        camera: Camera | None = None,
        token: str | None = None,
    ) -> None:
        """`url` and `token` of the driver; `options` are further fields of its `start`; `device` begins every
        message."""
        self.error: AcquisitionError | None = None
        self.orphans: Counter[str] = Counter()
        self._url, self._device, self._options = url, device, dict(options)
        self._token = token
        self._publication = publication
        self._camera = CameraControl(camera, device)
        self._guard = threading.RLock()
        self._run: DriverRun | None = None
        self._runs: list[DriverRun] = []
        self._stopped = threading.Event()
        self._point: Point | None = None
        self._flight: Flight | None = None
        self.n_announced = 0

    # Recording.

    def start_run(self) -> DriverRun:
        """Start a driver run unless one is open. On `AcquisitionError` nothing is left open."""
        if self._stopped.is_set():
            raise AcquisitionStoppedError(f"{self._device}: stopped")
        if self._run is not None and self._run.is_open:
            return self._run
        paths = self._publication.paths
        if self._runs:
            paths = dataclasses.replace(paths, prefix=f"{paths.prefix}part{len(self._runs) + 1}_")
        self._run = DriverRun(self._url, paths, self._options, self._device, self._token)
        self._runs.append(self._run)
        with self._errors_kept():
            self._run.open()
        return self._run

    def take_point(self, settings: Settings, on_progress: OnProgress = lambda n, counts: None) -> RunCounts:
        """Take the images of one point. Return when they are recorded and readable.

        Returns the counts of the run. Raises `AcquisitionError`.
        """
        with self._taking():
            run = self.start_run()
            before = run.counts()
            exposure = self._camera.fire(settings.images_per_event)
            images = ReadyImages(
                before, settings.images_per_event, may_restart=True, first_id=exposure.first_id
            )
            after = run.wait_for(
                settings.images_per_event, before, settings.timeout, exposure, on_progress=on_progress
            )
            after, is_live = self._read_point(run, images, after, exposure, settings)
            self._check_bad(run, before, after, settings.images_per_event, settings)
        with self._guard:
            self.orphans[EARLIER] += images.n_early
            self._point = Point(images.take(settings.images_per_event), is_live)
        return after

    def _check_bad(
        self, run: DriverRun, before: RunCounts, after: RunCounts, n_images: int, settings: Settings
    ) -> None:
        bad = after.bad_since(before)
        if bad and not settings.allow_bad:
            found = ", ".join(f"{n} {kind}" for kind, n in bad.items())
            raise AcquisitionError(
                mismatch(
                    self._device,
                    f"{n_images} good images",
                    f"{found} among them",
                    f"files {run.where}, driver {self._url} is {run.state}; allow_bad = 1 accepts them",
                )
            )

    def _read_point(
        self,
        run: DriverRun,
        images: ReadyImages,
        after: RunCounts,
        exposure: Exposure,
        settings: Settings,
    ) -> tuple[RunCounts, bool]:
        """Complete the queue of a point. Return the counts, and whether its files may still grow."""
        n, deadline = settings.images_per_event, time.monotonic() + settings.timeout
        while run.growing_files is not None and settings.publish_live and images.is_ordered:
            images.feed(_readable(run.growing_files, images, after), after)
            if images.is_complete:
                return after, True
            left = deadline - time.monotonic()
            if images.is_ordered and left < 0:
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
                after = run.wait_for(n + images.n_early, images.before, max(left, 0.0), exposure)
            if images.is_ordered:
                # More images came than were waited for, and a writer has not flushed its part of the first.
                time.sleep(SETTLE_PERIOD_S)
        self._close_and_feed(run, images, n)
        return after, False

    def _close_and_feed(self, run: DriverRun, images: ReadyImages, n_images: int) -> None:
        """Close the run, and complete the queue with `n_images` from its files."""
        run.close()
        if run.error is not None:
            raise run.error
        closed = of_closed_run(read_run(run.raw_files), images.next_rows)
        with self._guard:
            images.feed_closed(closed)
        if images.n_ready < n_images:
            early = f" after {images.n_early} of an earlier trigger" if images.n_early else ""
            raise AcquisitionError(
                mismatch(self._device, f"{n_images} images in {run.where}", f"{images.n_ready}{early}")
            )

    def scalars(self, regions: Mapping[str, Region]) -> Scalars | None:
        """Read the images of the last point. Raises `AcquisitionError`."""
        point = self._point
        if point is None:
            return None
        with self._errors_kept():
            return scalars_of(point.images, regions)

    def start_flight(self, n_events: int, settings: Settings) -> None:
        """Start a flight of `n_events`. Return when the camera was triggered. Raises `AcquisitionError`."""
        with self._taking():
            run = self.start_run()
            before = run.counts()
            exposure = self._camera.fire(n_events * settings.images_per_event)
            with self._guard:
                self._flight = Flight(n_events, settings, run, before, exposure)

    @property
    def is_flying(self) -> bool:
        """Return whether a flight was started, and not all of it was published."""
        return self._flight is not None and not self._flight.is_collected

    def finish_flight(self, on_progress: OnProgress = lambda n, counts: None) -> RunCounts:
        """Return when all images of the flight are recorded and can be published.

        Returns the counts of the run. Raises `AcquisitionError`.
        """
        flight = self._flight
        if flight is None:
            raise AcquisitionError(f"{self._device}: no flight was started; kickoff comes first")
        with self._camera_stopped_on_failure():
            try:
                after = self._wait_for_flight(flight, flight.n_images, on_progress)
                after = self._complete(flight, after)
                self._check_bad(flight.run, flight.before, after, flight.n_images, flight.settings)
            except BaseException:
                flight.has_failed = True
                raise
        flight.is_complete = True
        return after

    def _wait_for_flight(
        self, flight: Flight, n_images: int, on_progress: OnProgress = lambda n, counts: None
    ) -> RunCounts:
        return flight.run.wait_for(
            n_images,
            flight.before,
            flight.settings.timeout,
            flight.exposure,
            restart_on_progress=True,
            on_progress=on_progress,
        )

    def _complete(self, flight: Flight, after: RunCounts) -> RunCounts:
        """Wait until the queue is complete, or else close the run and complete it from the files."""
        deadline = time.monotonic() + flight.settings.timeout
        while flight.images.is_ordered and flight.settings.publish_live and time.monotonic() < deadline:
            with self._guard:
                self._read_files(flight)
                if flight.images.is_complete:
                    return after
            if flight.images.n_early:
                after = self._wait_for_flight(flight, flight.n_images + flight.images.n_early)
            time.sleep(SETTLE_PERIOD_S)
        self._close_and_feed(flight.run, flight.images, flight.n_images)
        return after

    def _read_files(self, flight: Flight) -> None:
        """Add what has become readable to the queue of the flight."""
        growing = flight.run.growing_files
        if growing is None or not flight.images.is_ordered or not flight.run.is_open:
            return
        flight.read_at = time.monotonic()
        counts = flight.run.counts()
        flight.images.feed(_readable(growing, flight.images, counts), counts)

    @contextmanager
    def _taking(self) -> Iterator[None]:
        """Take images within it: what was taken before must be published, or not wanted any more.

        Raises `AcquisitionError` when a flight was not collected.
        """
        with self._camera_stopped_on_failure():
            with self._guard:
                flight = self._flight
                if flight is not None and not flight.is_collected and not flight.has_failed:
                    raise AcquisitionError(self._not_collected(flight))
                self._settle()
            yield

    def _settle(self) -> None:
        """Count the images of the last point or flight as announced, or as orphans."""
        point, flight = self._point, self._flight
        self._point = self._flight = None
        if point is not None and self._publication.is_published(point):
            self.n_announced += len(point.images)
        elif point is not None:
            self.orphans[UNREAD] += len(point.images)
        if flight is not None:
            n_discarded = flight.stream.n_discarded if flight.stream else 0
            self.n_announced += flight.images.n_taken - n_discarded
            self.orphans[UNCOLLECTED] += flight.images.n_ready - flight.images.n_taken + n_discarded
            self.orphans[EARLIER] += flight.images.n_early

    def _not_collected(self, flight: Flight) -> str:
        n_collected = flight.images.n_taken // flight.settings.images_per_event
        return mismatch(
            self._device,
            f"a flight of {flight.n_events} events that was collected",
            f"{n_collected} events collected",
            "complete and collect come before the next flight or point",
        )

    def stop(self) -> None:
        """Make waits for images fail with `AcquisitionStoppedError`."""
        self._stopped.set()
        if self._run is not None:
            self._run.cancel()

    def allow_restart(self) -> None:
        """After `stop`, let images be taken again, into new files."""
        self._stopped.clear()

    def close(self) -> None:
        """End the run, and write the published images files a last time. Does not raise; see `error`."""
        try:
            self._camera.stop()
        except AcquisitionError as error:
            self._keep(error)
        if self._run is not None:
            self._run.close()
            if self._run.error is not None:
                self._keep(self._run.error)

        with self._guard:
            flight = self._flight
            if flight is not None and flight.is_complete and not flight.is_collected and self.error is None:
                self._keep(AcquisitionError(self._not_collected(flight)))
            self._settle()
            for error in self._publication.close():
                self._keep(error)
            self._count_orphans()

    def _count_orphans(self) -> None:
        """Name what is left of the recorded images: those outside of points, or of points that failed."""
        del self.orphans[OUTSIDE]
        n_recorded, n_known = (
            sum(run.n_recorded for run in self._runs),
            self.n_announced + self.orphans.total(),
        )
        self.orphans[OUTSIDE] = max(0, n_recorded - n_known)
        self.orphans = +self.orphans
        if n_known > n_recorded and self.error is None:
            self._keep(
                AcquisitionError(mismatch(self._device, f"{n_known} recorded images", str(n_recorded)))
            )

    # Publishing.

    def expect_new_stream(self, images_per_event: int, name: str = "") -> None:
        """The next documents of stream `name` belong to another stream, or run, than those before.

        Its events were described with `images_per_event`.
        """
        with self._guard:
            self._publication.expect_new_stream(images_per_event, name)

    def documents(
        self, limit: int | None = None, stream: str = "", *, of_event: bool = False
    ) -> list[Document]:
        """Return documents of what was recorded and not published yet, of a flight up to event `limit`.

        They continue those of the same `stream`; without a name, those before. Raises `AcquisitionError` when
        the files do not show what was recorded, and when the documents are those `of_event` and no point
        belongs to it.
        """
        with self._guard, self._errors_kept():
            if self._flight is not None and not self._flight.is_collected:
                return self._documents_of_flight(self._flight, limit, stream)
            documents = self._publication.publish_point(self._point, stream) if self._point else []
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

    def withdraw_point(self) -> None:
        """Forget that the last point was published; its documents are not emitted."""
        with self._guard:
            if self._point is not None:
                self._publication.withdraw_point(self._point)

    def n_ready_events(self) -> int:
        """Return the number of events of the flight that can be published, or were."""
        with self._guard:
            if self._flight is None:
                return 0
            self._read_files_when_due(self._flight)
            return self._flight.n_ready_events

    def _documents_of_flight(self, flight: Flight, limit: int | None, stream: str) -> list[Document]:
        self._read_files_when_due(flight)
        n_events = min(flight.n_ready_events, flight.n_events if limit is None else limit)
        n = n_events * flight.settings.images_per_event - flight.images.n_taken
        if n <= 0:
            return []
        flight.stream, documents = self._publication.publish_events(
            flight.images.take(n), flight.settings.images_per_event, live=flight.run.is_live, name=stream
        )
        return documents

    def _read_files_when_due(self, flight: Flight) -> None:
        is_due = time.monotonic() - flight.read_at >= FLIGHT_PERIOD_S
        if is_due and not flight.is_complete and flight.settings.publish_live:
            self._read_files(flight)

    # Errors.

    @contextmanager
    def _camera_stopped_on_failure(self) -> Iterator[None]:
        """Keep and raise failures as `_errors_kept`, and stop the camera: its images are not wanted."""
        with self._errors_kept():
            try:
                yield
            except BaseException:
                # The reason of the failure says more than one of the camera.
                with suppress(AcquisitionError):
                    self._camera.stop()
                raise

    @contextmanager
    def _errors_kept(self) -> Iterator[None]:
        """Raise every failure as an `AcquisitionError`, and keep the first."""
        try:
            yield
        except AcquisitionError as error:
            self._keep(error)
            raise
        except FileLayoutError as error:
            wrapped = AcquisitionError(f"{self._device}: {error}")
            self._keep(wrapped)
            raise wrapped from error

    def _keep(self, error: AcquisitionError) -> None:
        self.error = self.error or error


def _readable(growing: GrowingFiles, images: ReadyImages, counts: RunCounts) -> Images | None:
    """Return the readable images that are not in the queue yet; None when their ids restart."""
    rows = images.next_rows
    return in_order(growing.files, rows, growing.ids(rows, counts.rows))
