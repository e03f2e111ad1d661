"""What a device records between staging and unstaging: points one by one, or a flight.

An acquisition is one driver run when its files can be read while they grow. Otherwise, and when only closed
files can show the order of images, each point is a driver run.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from stddaq.errors import FileLayoutError
from stddaq.files.growing_run import GrowingFiles, Images, in_order, of_closed_run
from stddaq.files.run import read_run
from stddaq.text import mismatch
from stddaq_ophyd.core.documents import Document
from stddaq_ophyd.core.driver_run import DriverRun, OnProgress
from stddaq_ophyd.core.errors import AcquisitionError, AcquisitionStoppedError
from stddaq_ophyd.core.publication import Point, Publication
from stddaq_ophyd.core.ready_images import ReadyImages
from stddaq_ophyd.core.run_counts import RunCounts

# Reading the ids of a growing file takes 0.6 ms, writing the published images file 2 ms.
FLIGHT_PERIOD_S = 0.25
# A writer flushes within a few milliseconds.
SETTLE_PERIOD_S = 0.01


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
        is_complete: whether all images are in the queue.
        read_at: when the files were last read, in seconds of the monotonic clock.
    """

    n_events: int
    settings: Settings
    run: DriverRun
    before: RunCounts
    images: ReadyImages = field(init=False)
    is_complete: bool = False
    read_at: float = 0.0

    def __post_init__(self) -> None:
        self.images = ReadyImages(self.before, self.n_images, may_restart=False)
        self.images.is_ordered = self.run.is_live

    @property
    def n_images(self) -> int:
        """Return the number of images of the whole flight."""
        return self.n_events * self.settings.images_per_event

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
    """

    def __init__(
        self,
        url: str,
        device: str,
        options: Mapping[str, Any],
        publication: Publication,
        token: str | None = None,
    ) -> None:
        """`url` and `token` of the driver; `options` are further fields of its `start`; `device` begins every
        message."""
        self.error: AcquisitionError | None = None
        self._url, self._device, self._options = url, device, dict(options)
        self._token = token
        self._publication = publication
        self._guard = threading.RLock()
        self._run: DriverRun | None = None
        self._n_runs = 0
        self._stopped = threading.Event()
        self._point: Point | None = None
        self._flight: Flight | None = None

    # Recording.

    def start_run(self) -> DriverRun:
        """Start a driver run unless one is open. On `AcquisitionError` nothing is left open."""
        if self._stopped.is_set():
            raise AcquisitionStoppedError(f"{self._device}: stopped")
        if self._run is not None and self._run.is_open:
            return self._run
        paths = self._publication.paths
        if self._n_runs:
            paths = dataclasses.replace(paths, prefix=f"{paths.prefix}part{self._n_runs + 1}_")
        self._n_runs += 1
        self._run = DriverRun(self._url, paths, self._options, self._device, self._token)
        with self._errors_kept():
            self._run.open()
        return self._run

    def take_point(
        self,
        fire: Callable[[], None],
        settings: Settings,
        on_progress: OnProgress = lambda n, counts: None,
    ) -> RunCounts:
        """Take the images of one point, which `fire` triggers. Return when they are recorded and readable.

        Returns the counts of the run. Raises `AcquisitionError`.
        """
        with self._errors_kept():
            run = self.start_run()
            before = run.counts()
            fire()
            n = settings.images_per_event
            after = run.wait_for(n, before, settings.timeout, on_progress=on_progress)
            self._check_bad(run, before, after, n, settings)
            images, is_live = self._images_of_point(run, before, after, settings)
        with self._guard:
            self._point, self._flight = Point(images, is_live), None
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

    def _images_of_point(
        self, run: DriverRun, before: RunCounts, after: RunCounts, settings: Settings
    ) -> tuple[Images, bool]:
        """Return the images of a point in order, and whether their files may still grow."""
        n, deadline = settings.images_per_event, time.monotonic() + settings.timeout
        images = ReadyImages(before, n, may_restart=True)
        while run.growing_files is not None and settings.publish_live and images.is_ordered:
            images.feed(_readable(run.growing_files, images, after), after)
            if images.is_complete:
                return images.take(n), True
            # More images came than were waited for, and a writer has not flushed its part of the first ones.
            if images.is_ordered:
                if time.monotonic() > deadline:
                    raise AcquisitionError(
                        mismatch(
                            self._device,
                            f"{n} readable images in {run.where}",
                            str(images.n_ready),
                            "is one of the files open in this process?",
                        )
                    )
                time.sleep(SETTLE_PERIOD_S)
        self._close_and_feed(run, images, n)
        return images.take(n), False

    def _close_and_feed(self, run: DriverRun, images: ReadyImages, n_images: int) -> None:
        """Close the run, and complete the queue with `n_images` from its files."""
        run.close()
        if run.error is not None:
            raise run.error
        closed = of_closed_run(read_run(run.raw_files), images.next_rows)
        with self._guard:
            images.feed_closed(closed)
        if images.n_ready < n_images:
            raise AcquisitionError(
                mismatch(self._device, f"{n_images} images in {run.where}", str(images.n_ready))
            )

    def start_flight(self, fire: Callable[[], None], n_events: int, settings: Settings) -> None:
        """Start a flight of `n_events`, whose images `fire` triggers. Return when the camera was triggered.

        Raises `AcquisitionError`.
        """
        with self._errors_kept():
            run = self.start_run()
            flight = Flight(n_events, settings, run, run.counts())
            with self._guard:
                self._point, self._flight = None, flight
            fire()

    @property
    def is_flying(self) -> bool:
        """Return whether a flight was started, and not all of it was published."""
        return self._flight is not None

    def finish_flight(self, on_progress: OnProgress = lambda n, counts: None) -> RunCounts:
        """Return when all images of the flight are recorded and can be published.

        Returns the counts of the run. Raises `AcquisitionError`.
        """
        flight = self._flight
        if flight is None:
            raise AcquisitionError(f"{self._device}: no flight was started; kickoff comes first")
        with self._errors_kept():
            after = flight.run.wait_for(
                flight.n_images,
                flight.before,
                flight.settings.timeout,
                restart_on_progress=True,
                on_progress=on_progress,
            )
            self._check_bad(flight.run, flight.before, after, flight.n_images, flight.settings)
            self._complete(flight)
        flight.is_complete = True
        return after

    def _complete(self, flight: Flight) -> None:
        """Wait until the queue is complete, or else close the run and complete it from the files."""
        deadline = time.monotonic() + flight.settings.timeout
        while flight.images.is_ordered and flight.settings.publish_live and time.monotonic() < deadline:
            with self._guard:
                self._read_files(flight)
                if flight.images.is_complete:
                    return
            time.sleep(SETTLE_PERIOD_S)
        self._close_and_feed(flight.run, flight.images, flight.n_images)

    def _read_files(self, flight: Flight) -> None:
        """Add what has become readable to the queue of the flight."""
        growing = flight.run.growing_files
        if growing is None or not flight.images.is_ordered or not flight.run.is_open:
            return
        flight.read_at = time.monotonic()
        counts = flight.run.counts()
        flight.images.feed(_readable(growing, flight.images, counts), counts)

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
        if self._run is not None:
            self._run.close()
            if self._run.error is not None:
                self._keep(self._run.error)
        with self._guard:
            for error in self._publication.close():
                self._keep(error)

    # Publishing.

    def expect_new_stream(self) -> None:
        """The next documents belong to another stream, or run, than those before."""
        with self._guard:
            self._publication.expect_new_stream()

    def documents(self, limit: int | None = None, stream: str = "") -> list[Document]:
        """Return documents of what was recorded and not published yet, of a flight up to event `limit`.

        They continue those of the same `stream`; without a name, those before. Raises `AcquisitionError` when
        the files do not show what was recorded.
        """
        with self._guard, self._errors_kept():
            if self._flight is not None:
                return self._documents_of_flight(self._flight, limit, stream)
            return self._publication.publish_point(self._point, stream) if self._point else []

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
        documents = self._publication.publish_events(
            flight.images.take(n), flight.settings.images_per_event, live=flight.run.is_live, name=stream
        )
        if flight.is_complete and flight.images.n_taken == flight.n_images:
            self._flight = None
        return documents

    def _read_files_when_due(self, flight: Flight) -> None:
        is_due = time.monotonic() - flight.read_at >= FLIGHT_PERIOD_S
        if is_due and not flight.is_complete and flight.settings.publish_live:
            self._read_files(flight)

    # Errors.

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
