"""The loop of a stage: receive, work in threads, check, publish in the order of the source.

What is made of an image, and how it is published, is the business of an `Output`. An image whose slot was
written anew before or while it was looked at is published with status `id_missmatch` and without its pixels,
one that could not be processed with status `undefined`: no image is missing, and none is taken for good.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import zmq

from stddaq.config import DetectorConfig
from stddaq.daemon.batching import Gathering
from stddaq.daemon.log import logger
from stddaq.daemon.main import StopRequest
from stddaq.daemon.statistics import RateCounter, StatisticsTimer, log_statistics
from stddaq.dataplane.image import Image
from stddaq.dataplane.image_subscriber import Intake
from stddaq.dataplane.metadata import ID_MISSMATCH, ImageMetadata
from stddaq.errors import SourceError
from stddaq.processing.workers import Workers

RECEIVE_BATCH = 1000
# Small images are worked on several at a time: handing over a task costs as much as a small image.
TASK_BYTES = 4 * 2**20
TASK_IMAGES = 64
# How many slots the source must be away from an image, once images were lost while they were worked on.
LEAST_SLOTS_NEEDED = 16
# How long work that has begun may take when the service is asked to end.
STOP_PATIENCE_S = 1.0

Made = TypeVar("Made")


class Output(Protocol[Made]):
    """What a stage makes of images, and how it publishes that."""

    n_slots: int
    """Images whose ids differ by less have each a place of its own to be made in."""
    looks_at_pixels: bool
    """Whether `make` may, so that it matters whether the image is overwritten."""
    status_of_failed: int | None
    """Status of an image whose `make` has failed; None: its own."""

    def make(self, image: Image) -> Made:
        """What is published for an image. Called by any thread."""
        ...

    def blank(self, image: Image) -> Made:
        """What is published instead when the image was overwritten, or `make` has failed. As `make`."""
        ...

    def publish(self, metadata: ImageMetadata, made: Made) -> None:
        """Publish the next image, in the order of the source. `metadata` is the source's, to be adapted."""
        ...

    def pairs(self) -> dict[str, object]:
        """Counters of its own since the last call, for the statistics line."""
        ...

    def close(self) -> None:
        """Deliver what is on its way, and release everything."""
        ...


@dataclass(slots=True)
class _Job(Generic[Made]):
    """An image on its way through the stage."""

    image: Image
    is_judged: bool
    """Whether the ring tells that the image is overwritten; if not, the announcements, a while later."""
    made: Made | None = None
    is_lost: bool = False
    error: Exception | None = None
    done_at: float = 0.0
    """Monotonic clock; 0: not done."""


class Stage(Generic[Made]):
    """A running stage; see the module."""

    def __init__(self, config: DetectorConfig, intake: Intake, output: Output[Made], n_threads: int) -> None:
        """`n_threads` 0: the service's own thread does everything."""
        self._config, self._intake, self._output = config, intake, output
        self._task_images = min(TASK_IMAGES, max(1, TASK_BYTES // config.image_bytes))
        self._n_threads = n_threads
        self._waiting: deque[Image] = deque()
        self._jobs: deque[_Job[Made]] = deque()
        self._busy_slots: set[int] = set()
        self._counter = RateCounter()
        self._statistics = StatisticsTimer(config.stats_collection_period)
        self._gathering = Gathering.of_reader(config)
        self._n_overwritten = self._n_failed = 0
        self._last_error: Exception | None = None
        self._slots_needed = 0

    def serve(self, stop: StopRequest) -> None:
        """Work until asked to stop; what has been begun by then is still published.

        Raises `SourceError` when there is no memory for an image.
        """
        workers = Workers[_Job[Made]](self._n_threads, self._work)
        try:
            self._loop(workers, stop)
        finally:
            is_done = workers.close(STOP_PATIENCE_S)
        if not is_done:
            logger.warning("left while an image was still being processed")
        self._publish(settle=True)

    def _loop(self, workers: Workers[_Job[Made]], stop: StopRequest) -> None:
        poller = zmq.Poller()
        for source in (workers.fileno(), stop.fileno()):
            poller.register(source, zmq.POLLIN)
        while not stop.poll():
            # Messages wait in the socket's queue as long as there are images here that wait.
            poller.register(self._intake.socket, 0 if self._waiting else zmq.POLLIN)
            poller.poll(self._timeout_ms())
            workers.acknowledge()
            self._publish()
            n_received = self._receive()
            while self._start(workers):
                self._publish()
            self._report()
            if not self._jobs and (pause := self._gathering.pause_after(n_received)):
                time.sleep(pause)

    def _timeout_ms(self) -> int:
        timeout = self._statistics.due_in
        if self._jobs and self._jobs[0].done_at:  # Waits for its announcements.
            timeout = min(timeout, max(0.0, self._jobs[0].done_at + self._intake.hold - time.monotonic()))
        return int(timeout * 1000) + 1

    def _receive(self) -> int:
        """Take what has been announced, once all before that is on its way. Returns how many images."""
        if self._waiting:
            return 0
        self._waiting.extend(self._intake.receive(RECEIVE_BATCH))
        return len(self._waiting)

    def _start(self, workers: Workers[_Job[Made]]) -> bool:
        """Hand the next images to a thread. Whether there were some, and a thread for them."""
        waiting, jobs = self._waiting, []
        if not waiting or workers.n_free <= 0:
            return False
        n_images = min(self._task_images, -(-len(waiting) // max(1, self._n_threads)))
        while waiting and len(jobs) < n_images and self._enter_slot(waiting[0].image_id):
            image = waiting.popleft()
            is_judged = not self._output.looks_at_pixels or self._intake.can_tell(image)
            jobs.append(_Job[Made](image, is_judged))
        if jobs:
            self._jobs.extend(jobs)
            workers.start(jobs)
        return bool(jobs)

    def _enter_slot(self, image_id: int) -> bool:
        """Whether no other image is on its way to the same slot (the ids have restarted, or jumped)."""
        slot = image_id % self._output.n_slots
        if slot in self._busy_slots:
            return False
        self._busy_slots.add(slot)
        return True

    def _work(self, job: _Job[Made]) -> None:
        """Make what is to be published of one image. Called by any thread."""
        image, output = job.image, self._output
        try:
            job.is_lost = self._is_known_lost(job) or self._is_too_late_for(job)
            if not job.is_lost:
                try:
                    job.made = output.make(image)
                except Exception as error:  # noqa: BLE001  (whatever it is, it belongs to this image)
                    job.error = error
                job.is_lost = self._is_known_lost(job)
                self._learn_from(job)
            if job.is_lost or job.error:
                job.made = output.blank(image)
        except SourceError as error:
            job.error = error
        finally:
            job.done_at = time.monotonic()

    def _is_known_lost(self, job: _Job[Made]) -> bool:
        return (
            job.is_judged and self._output.looks_at_pixels and self._intake.is_overwritten(job.image.metadata)
        )

    def _is_too_late_for(self, job: _Job[Made]) -> bool:
        """Whether an image would be overwritten while it is worked on, as those before it were.

        A stage that is slower than its source would else spend all its time on images that it loses.
        """
        needed = self._slots_needed
        return needed > 0 and job.is_judged and self._intake.slots_left(job.image.metadata) < needed

    def _learn_from(self, job: _Job[Made]) -> None:
        if not (job.is_judged and self._output.looks_at_pixels):
            return
        if job.is_lost:
            n_slots = self._config.n_slots
            self._slots_needed = min(n_slots // 2, max(LEAST_SLOTS_NEEDED, 2 * self._slots_needed))
        elif self._slots_needed and self._intake.slots_left(job.image.metadata) > self._config.n_slots // 2:
            self._slots_needed = 0

    def _publish(self, settle: bool = False) -> None:
        """Publish the images that are done, in order, up to the first that is not.

        `settle`: wait for those that only wait for announcements.
        """
        jobs, heard_at = self._jobs, 0.0
        while jobs and (done_at := jobs[0].done_at):
            job = jobs[0]
            if not job.is_judged:
                due_in = done_at + self._intake.hold - time.monotonic()
                if due_in > 0 and not settle:
                    return
                time.sleep(max(0.0, due_in))
                if heard_at < done_at + self._intake.hold:
                    self._intake.catch_up()
                    heard_at = time.monotonic()
                self._judge(job)
            jobs.popleft()
            self._publish_job(job)

    def _judge(self, job: _Job[Made]) -> None:
        job.is_lost = self._intake.is_suspect(job.image.metadata)
        if job.is_lost:
            job.made = self._output.blank(job.image)

    def _publish_job(self, job: _Job[Made]) -> None:
        output, metadata = self._output, job.image.metadata
        if job.made is None:
            raise job.error or SourceError(f"image {metadata.image_id}: nothing was made of it")
        if job.is_lost:
            self._n_overwritten += 1
            metadata.status = ID_MISSMATCH
        elif job.error:
            self._n_failed += 1
            self._last_error = job.error
            if output.status_of_failed is not None:
                metadata.status = output.status_of_failed  # pyright: ignore[reportAttributeAccessIssue]
        output.publish(metadata, job.made)
        self._busy_slots.discard(metadata.image_id % output.n_slots)
        self._counter.count += 1

    def _report(self) -> None:
        if self._statistics.due_in > 0:
            return
        pairs = {"source": self._intake.suffix, **self._counter.pairs(self._statistics.restart())}
        pairs |= self._output.pairs()
        pairs |= {"n_overwritten_images": self._n_overwritten, "n_failed_images": self._n_failed}
        log_statistics(self._config.detector_name, pairs | self._intake.pairs())
        if self._last_error:
            logger.error("processing failed: %s", self._last_error, exc_info=self._last_error)
        self._n_overwritten, self._n_failed, self._last_error = 0, 0, None
        if not self._jobs:
            self._intake.refresh()
