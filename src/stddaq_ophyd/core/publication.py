"""What is recorded between staging and unstaging: points one by one, or a flight, and what is told of them.

An acquisition is one run of the driver as long as its files can be read while they grow. Otherwise, and when
the order of images is known only from closed files, it is a run for each point.
"""

from __future__ import annotations

import dataclasses
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stddaq.errors import FileLayoutError
from stddaq.files.growing_run import GrowingFiles, Images, in_order, n_settled, of_closed_run
from stddaq.files.published_images import PublishedImagesFile, published_images_name
from stddaq.files.run import read_run
from stddaq_ophyd.core.documents import Announcer, Document, ImageSource
from stddaq_ophyd.core.driver_run import DriverRun, OnProgress, RunCounts
from stddaq_ophyd.core.errors import AcquisitionError, AcquisitionStoppedError, StreamsMixedError
from stddaq_ophyd.core.paths import PathInfo

# During a flight the files are looked at, and written anew, not more often than this.
ANNOUNCE_PERIOD_S = 0.25
# How soon to look again for images that another writer has not flushed yet.
SETTLE_S = 0.01


@dataclass(frozen=True, slots=True)
class Plan:
    """How images are taken.

    Attributes:
        images_per_event: images of one point, or of one event of a flight.
        patience: seconds in which the images of a point must come; in a flight, each image after the last.
        allow_bad: whether damaged, overwritten and skipped images are accepted.
    """

    images_per_event: int
    patience: float
    allow_bad: bool = False


@dataclass(slots=True)
class _Point:
    """The images of one point, and as which event of which series they were announced."""

    images: Images
    is_live: bool
    series: _Series | None = None
    event: int = 0


class _Series:
    """The images of one stream of documents: a published images file of its own, counted from 0."""

    def __init__(self, file: PublishedImagesFile, announcer: Announcer, images_per_event: int) -> None:
        self.file, self.announcer, self.images_per_event = file, announcer, images_per_event

    def announce(self, images: Images, n_events: int, *, live: bool) -> Iterator[Document]:
        """Show `images`, which follow those of the published events, and announce `n_events` in all."""
        self.withdraw()
        self.file.extend(images)
        self.file.write(live=live)
        yield from self.announcer.announce(n_events, images)

    def withdraw(self) -> None:
        """Take back what was handed out and thrown away by a pause."""
        self.file.truncate(self.announcer.n_published * self.images_per_event)


class _Flight:
    """Images that are recorded without anybody waiting for each."""

    def __init__(self, n_events: int, plan: Plan, before: RunCounts, recording: DriverRun) -> None:
        self.n_events, self.plan, self.before, self.recording = n_events, plan, before, recording
        self.next_rows = list(before.rows)
        self.waiting: Images | None = None
        self.n_taken = 0
        self.is_ordered = recording.is_live
        self.is_complete = False
        self.looked_at = 0.0

    @property
    def n_images(self) -> int:
        """Images of the whole flight."""
        return self.n_events * self.plan.images_per_event


class Acquisition:
    """See the module. `begin`, the taking of images and `end` block, and belong to one thread at a time.

    Attributes:
        error: the first thing that went wrong.
    """

    def __init__(
        self,
        url: str,
        who: str,
        paths: PathInfo,
        options: Mapping[str, Any],
        data_key: str,
        make_announcer: Callable[[ImageSource], Announcer],
        *,
        announce_live: bool = True,
    ) -> None:
        """`url` of the driver; `options` are further fields of its `start`; `who` begins every message.

        With `announce_live` false images are announced when their files are closed, even if they could be
        read before.
        """
        self.paths = paths
        self.error: AcquisitionError | None = None
        self._url, self._who, self._options = url, who, dict(options)
        self._data_key, self._make_announcer, self._announce_live = data_key, make_announcer, announce_live
        self._guard = threading.RLock()
        self._recording: DriverRun | None = None
        self._growing: GrowingFiles | None = None
        self._n_recordings = 0
        self._stopped = threading.Event()
        self._point: _Point | None = None
        self._flight: _Flight | None = None
        self._series: list[_Series] = []
        self._by_stream: dict[str, _Series] = {}
        self._stream_is_new = True

    # Taking images.

    @property
    def recording(self) -> DriverRun | None:
        """The run of the driver that is going on, or was the last."""
        return self._recording

    def begin(self) -> DriverRun:
        """Start to record, unless it goes on. Raises `AcquisitionError`, then nothing is left open."""
        if self._stopped.is_set():
            raise AcquisitionStoppedError(f"{self._who}: stopped")
        if self._recording is not None and self._recording.is_open:
            return self._recording
        paths = self.paths
        if self._n_recordings:
            paths = dataclasses.replace(paths, prefix=f"{paths.prefix}part{self._n_recordings + 1}_")
        self._n_recordings += 1
        self._recording, self._growing = DriverRun(self._url, paths, self._options, self._who), None
        try:
            self._recording.open()
        except AcquisitionError as error:
            self._keep(error)
            raise
        if self._recording.is_live:
            self._growing = GrowingFiles(self._recording.raw_files)
        return self._recording

    def take_point(
        self, fire: Callable[[], None], plan: Plan, on_progress: OnProgress = lambda n, received: None
    ) -> RunCounts:
        """Let the camera take the images of one point; returns when they are recorded, and readable.

        `fire` causes them. Returns what the driver says of the run. Raises `AcquisitionError`.
        """
        try:
            recording = self.begin()
            before = recording.received()
            fire()
            after = recording.wait_for(plan.images_per_event, before, plan.patience, on_progress=on_progress)
            self._check_lost(recording, before, after, plan.images_per_event, plan)
            images, is_live = self._images_of_point(recording, before, after, plan)
        except AcquisitionError as error:
            self._keep(error)
            raise
        except FileLayoutError as error:
            raise self._keep(AcquisitionError(f"{self._who}: {error}")) from error
        with self._guard:
            self._point, self._flight = _Point(images, is_live), None
        return after

    def _check_lost(
        self, recording: DriverRun, before: RunCounts, after: RunCounts, n_images: int, plan: Plan
    ) -> None:
        lost = after.bad_since(before)
        if lost and not plan.allow_bad:
            words = ", ".join(f"{n} {how}" for how, n in lost.items())
            raise AcquisitionError(
                f"{self._who}: of {n_images} images {words}; files {recording.where}, driver {self._url} is "
                f"{recording.state}; allow_bad = 1 accepts such images"
            )

    def _images_of_point(
        self, recording: DriverRun, before: RunCounts, after: RunCounts, plan: Plan
    ) -> tuple[Images, bool]:
        """The images of a point in order, and whether their files may be growing."""
        n, deadline = plan.images_per_event, time.monotonic() + plan.patience
        while self._growing is not None and self._announce_live:
            images = in_order(self._growing.files, before.rows, self._growing.ids(before.rows, after.rows))
            if images is None or not _order_is_sure(images, before, after):
                break
            if n_settled(images, before.rows, after.rows) >= n:
                return images[:n], True
            # More images came than were waited for, and one writer is behind the others.
            if time.monotonic() > deadline:
                raise AcquisitionError(
                    f"{self._who}: of {n} images {n_settled(images, before.rows, after.rows)} can be read in "
                    f"{recording.where}; is one of the files kept open in this process?"
                )
            time.sleep(SETTLE_S)
        return self._images_of_closed(recording, before, n), False

    def _images_of_closed(self, recording: DriverRun, before: RunCounts, n: int) -> Images:
        recording.close()
        if recording.error is not None:
            raise recording.error
        images = of_closed_run(read_run(recording.raw_files), before.rows)
        if len(images) < n:
            raise AcquisitionError(
                f"{self._who}: {len(images)} of {n} images are in the files {recording.where}"
            )
        return images[:n]

    def begin_flight(self, fire: Callable[[], None], n_events: int, plan: Plan) -> None:
        """Take `n_events` times `plan.images_per_event` images; returns when the camera was told.

        Raises `AcquisitionError`.
        """
        try:
            recording = self.begin()
            flight = _Flight(n_events, plan, recording.received(), recording)
            with self._guard:
                self._point, self._flight = None, flight
            fire()
        except AcquisitionError as error:
            self._keep(error)
            raise

    @property
    def is_flying(self) -> bool:
        """Whether a flight was begun, and not all of it was announced."""
        return self._flight is not None

    def finish_flight(self, on_progress: OnProgress = lambda n, received: None) -> RunCounts:
        """Return when all images of the flight are recorded, and can be announced.

        Raises `AcquisitionError`.
        """
        flight = self._flight
        if flight is None:
            raise AcquisitionError(f"{self._who}: no flight was begun; kickoff comes first")
        recording, plan = flight.recording, flight.plan
        try:
            after = recording.wait_for(
                flight.n_images,
                flight.before,
                plan.patience,
                restart_on_progress=True,
                on_progress=on_progress,
            )
            self._check_lost(recording, flight.before, after, flight.n_images, plan)
            self._look_for_last(flight)
        except AcquisitionError as error:
            self._keep(error)
            raise
        except FileLayoutError as error:
            raise self._keep(AcquisitionError(f"{self._who}: {error}")) from error
        flight.is_complete = True
        return after

    def _look_for_last(self, flight: _Flight) -> None:
        deadline = time.monotonic() + flight.plan.patience
        while flight.is_ordered and self._announce_live and time.monotonic() < deadline:
            with self._guard:
                self._look_at(flight)
                if flight.n_taken + _length(flight.waiting) >= flight.n_images:
                    return
            time.sleep(SETTLE_S)
        images = self._images_of_closed(
            flight.recording,
            dataclasses.replace(flight.before, rows=tuple(flight.next_rows)),
            flight.n_images - flight.n_taken - _length(flight.waiting),
        )
        with self._guard:
            flight.waiting = images if flight.waiting is None else images.behind(flight.waiting)

    def _look_at(self, flight: _Flight) -> None:
        """Take in what has become readable, as far as its order is sure."""
        growing = self._growing
        if growing is None or not flight.is_ordered or not flight.recording.is_open:
            return
        flight.looked_at = time.monotonic()
        rows = tuple(flight.next_rows)
        now = flight.recording.received()
        images = in_order(growing.files, rows, growing.ids(rows, now.rows))
        if images is None or now.n_restarts != flight.before.n_restarts:
            flight.is_ordered = False
            return
        wanted = flight.n_images - flight.n_taken - _length(flight.waiting)
        images = images[: min(n_settled(images, rows, now.rows), wanted)]
        for i in range(len(rows)):
            flight.next_rows[i] += int((images.files == i).sum())
        flight.waiting = images if flight.waiting is None else images.behind(flight.waiting)

    def stop(self) -> None:
        """Let whoever waits for images give up. Safe from any thread."""
        self._stopped.set()
        if self._recording is not None:
            self._recording.cancel()

    def pause_over(self) -> None:
        """After `stop`, allow images to be taken again, into new files."""
        self._stopped.clear()

    def end(self) -> None:
        """End the run and write the published images files a last time. Never raises; see `error`."""
        if self._recording is not None:
            self._recording.close()
            if self._recording.error is not None:
                self._keep(self._recording.error)
        with self._guard:
            for series in self._series:
                try:
                    series.withdraw()
                except StreamsMixedError as error:
                    self._keep(AcquisitionError(f"{self._who}: {error}"))
                try:
                    if series.file.n_images:
                        series.file.write(live=False)
                    else:
                        series.file.path.unlink(missing_ok=True)
                except (FileLayoutError, OSError) as error:
                    self._keep(AcquisitionError(f"{self._who}: {error}"))

    def _keep(self, error: AcquisitionError) -> AcquisitionError:
        self.error = self.error or error
        return error

    # Telling of them.

    @property
    def published_files(self) -> tuple[Path, ...]:
        """The files that documents reference, so far."""
        return tuple(series.file.path for series in self._series)

    def expect_new_stream(self) -> None:
        """The next documents belong to another stream, or run, than those before."""
        with self._guard:
            self._stream_is_new = True

    def documents(self, limit: int | None = None, stream: str = "") -> list[Document]:
        """Documents of what was recorded and not announced yet, up to event `limit` of a flight.

        They continue those of the same `stream`; without a name, those before. Raises `AcquisitionError` when
        the files do not show what they should.
        """
        try:
            with self._guard:
                if self._flight is not None:
                    return self._documents_of_flight(limit, stream)
                return self._documents_of_point(stream)
        except (StreamsMixedError, FileLayoutError) as error:
            raise self._keep(AcquisitionError(f"{self._who}: {error}")) from error

    def n_events(self) -> int:
        """How many events of the flight can be announced."""
        with self._guard:
            if self._flight is None:
                return 0
            self._look_now_and_then(self._flight)
            return self._n_ready(self._flight)

    def _documents_of_point(self, stream: str) -> list[Document]:
        point = self._point
        if point is None:
            return []
        series = self._series_of(stream, len(point.images), point.images, point.is_live)
        event = series.announcer.n_published
        if point.series is series and point.event < event:
            return []
        point.series, point.event = series, event
        return list(series.announce(point.images, event + 1, live=point.is_live))

    def _documents_of_flight(self, limit: int | None, stream: str) -> list[Document]:
        flight = self._flight
        assert flight is not None
        self._look_now_and_then(flight)
        n_events = min(self._n_ready(flight), flight.n_events if limit is None else limit)
        m = flight.plan.images_per_event
        n = n_events * m - flight.n_taken
        if flight.waiting is None or n <= 0:
            return []
        images, flight.waiting = flight.waiting[:n], flight.waiting[n:]
        flight.n_taken += n
        is_live = flight.recording.is_live
        series = self._series_of(stream, m, images, is_live)
        n_before = series.announcer.n_published
        if n_before * m != series.file.n_images:
            # They would be told of again in place of the images that follow.
            n_bad = series.file.n_images - n_before * m
            raise AcquisitionError(
                f"{self._who}: documents of {n_bad} images of a flight were collected and not emitted; "
                "the flight cannot go on"
            )
        found = list(series.announce(images, n_before + n // m, live=is_live))
        if flight.is_complete and flight.n_taken == flight.n_images:
            self._flight = None
        return found

    def _look_now_and_then(self, flight: _Flight) -> None:
        is_due = time.monotonic() - flight.looked_at >= ANNOUNCE_PERIOD_S
        if is_due and not flight.is_complete and self._announce_live:
            self._look_at(flight)

    def _n_ready(self, flight: _Flight) -> int:
        return (flight.n_taken + _length(flight.waiting)) // flight.plan.images_per_event

    def _series_of(self, stream: str, images_per_event: int, images: Images, is_live: bool) -> _Series:
        """The series that goes on, or a new one for a new stream."""
        last = self._by_stream.get(stream)
        is_new, self._stream_is_new = self._stream_is_new, False
        if last is not None and not (is_new and last.announcer.n_published):
            if last.images_per_event != images_per_event:
                raise AcquisitionError(
                    f"{self._who}: found {images_per_event} images per event, expected "
                    f"{last.images_per_event} as in the events of this stream before"
                )
            return last
        name = published_images_name(self.paths.prefix, len(self._series))
        raw = images.raw_files[0]
        source = ImageSource(
            data_key=self._data_key,
            path=self.paths.read_directory / name,
            images_per_event=images_per_event,
            event_bytes=images_per_event * raw.dtype.itemsize * math.prod(raw.image_shape),
            swmr=is_live,
            number_of_writers=len(images.raw_files),
            raw_files=f"{self.paths.prefix}{{writer}}.h5",
        )
        series = _Series(PublishedImagesFile(source.path), self._make_announcer(source), images_per_event)
        self._series.append(series)
        self._by_stream[stream] = series
        return series


def _length(images: Images | None) -> int:
    return 0 if images is None else len(images)


def _order_is_sure(images: Images, before: RunCounts, after: RunCounts) -> bool:
    """Whether the ids of the images of a point tell their order, though ids may begin again with a point."""
    n_restarts = after.n_restarts - before.n_restarts
    if not n_restarts or len(images) <= 1:
        return True
    n_gaps = int(images.ids[-1] - images.ids[0]) + 1 - len(images)
    return n_restarts == 1 and n_gaps == after.n_skipped - before.n_skipped
