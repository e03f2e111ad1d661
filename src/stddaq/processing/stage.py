"""The loop of a stage: receive images, process them in threads, publish the results in the source's order.

A `StageOutput` makes the output of an image and publishes it. An image whose slot was reused before its
processing was complete is published with status `id_missmatch` and without pixels; an image whose processing
failed, with status `undefined`. So no image is left out, and none is wrongly called good.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import Generic

import zmq

from stddaq.config import DetectorConfig
from stddaq.daemon import metrics
from stddaq.daemon.batching import Batching
from stddaq.daemon.log import logger
from stddaq.daemon.main import StopRequest
from stddaq.daemon.metrics import Registry
from stddaq.daemon.statistics import Period, StatisticsLine
from stddaq.dataplane.image import Image
from stddaq.dataplane.image_subscriber import ImageSubscriber
from stddaq.dataplane.ipc_sockets import CHECK_PERIOD_S
from stddaq.dataplane.metadata import ID_MISSMATCH
from stddaq.dataplane.ring_reader import HeldImages
from stddaq.errors import SourceError
from stddaq.processing.outputs import Made, StageOutput
from stddaq.processing.workers import Workers

RECEIVE_BATCH = 1000
# Small images are processed several at a time, because handing over a task costs as much as one of them.
TASK_BYTES = 4 * 2**20
TASK_IMAGES = 64
# After images were overwritten during their processing, the source must be this many slots away.
LEAST_SLOTS_NEEDED = 16
# How long images may still be processed after a stop request.
STOP_TIMEOUT_S = 1.0


@dataclass(slots=True)
class _Job(Generic[Made]):
    """An image in the stage."""

    image: Image
    is_certain: bool
    """Whether the cursor gives a verdict, or none is needed because no pixels are read."""
    made: Made | None = None
    is_overwritten: bool = False
    error: Exception | None = None
    done_at: float = 0.0
    """Monotonic clock; 0: not done."""


class Stage(Generic[Made]):
    """A running stage; see the module.

    Attributes:
        n_published, n_overwritten, n_failed: images published, and those of them without their pixels.
    """

    def __init__(
        self,
        config: DetectorConfig,
        subscriber: ImageSubscriber,
        output: StageOutput[Made],
        n_threads: int,
        registry: Registry,
    ) -> None:
        """With `n_threads` 0 the main thread does everything. The counters are added to `registry`."""
        self._config, self._subscriber, self._output = config, subscriber, output
        self._reader = subscriber.reader
        self._task_images = min(TASK_IMAGES, max(1, TASK_BYTES // config.image_bytes))
        self._n_threads = n_threads
        self._waiting: deque[Image] = deque()
        self._jobs: deque[_Job[Made]] = deque()
        self._held = HeldImages[_Job[Made]](subscriber.reader)
        self._busy_slots: set[int] = set()
        self._batching = Batching.of_reader(config)
        self.n_published = self.n_overwritten = self.n_failed = 0
        self._is_failure_logged = False
        self._slots_needed = 0
        self._ring_check_at, self._ring_is_removed = 0.0, False
        self._register(registry)
        self._statistics = StatisticsLine(config, registry, self._pairs)

    def _register(self, registry: Registry) -> None:
        source = self._subscriber.suffix
        self._subscriber.register(registry, lambda: len(self._waiting) + len(self._jobs))
        registry.add(metrics.IMAGES_PROCESSED, lambda: self.n_published, source=source)
        registry.add(metrics.IMAGES_OVERWRITTEN, lambda: self.n_overwritten, source=source)
        registry.add(metrics.IMAGES_FAILED, lambda: self.n_failed, source=source)
        self._output.register(registry)

    def serve(self, stop: StopRequest) -> None:
        """Process images until asked to stop; images that were started by then are still published.

        Raise `SourceError` if there is no memory for an image.
        """
        workers = Workers[_Job[Made]](self._n_threads, self._work)
        try:
            self._loop(workers, stop)
        finally:
            is_done = workers.close(STOP_TIMEOUT_S)
        if not is_done:
            logger.warning("stopped while an image was still being processed")
        self._publish(wait=True)

    def _loop(self, workers: Workers[_Job[Made]], stop: StopRequest) -> None:
        self._watch_source()
        poller = zmq.Poller()
        for source in (workers.fileno(), stop.fileno()):
            poller.register(source, zmq.POLLIN)
        while not stop.poll():
            # Messages wait in the socket's queue while images wait here, or a new ring is due.
            is_waiting = self._waiting or self._ring_is_removed
            poller.register(self._subscriber.socket, 0 if is_waiting else zmq.POLLIN)
            poller.poll(int(min(self._statistics.due_in, self._held.due_in) * 1000) + 1)
            workers.acknowledge()
            self._output.attend()
            self._publish()
            self._follow_ring()
            n_received = self._receive()
            while self._start(workers):
                self._publish()
            self._report()
            if not (self._jobs or self._held) and (pause := self._batching.pause_after(n_received)):
                time.sleep(pause)

    def _follow_ring(self) -> None:
        """Attach to a new ring if this one was removed, after the images of the old one are published."""
        now = time.monotonic()
        if now >= self._ring_check_at:
            self._ring_check_at = now + CHECK_PERIOD_S
            self._ring_is_removed = not self._reader.ring.is_current()
        if self._ring_is_removed and not (self._jobs or self._held or self._waiting):
            self._reader.refresh()
            self._ring_is_removed = False

    def _receive(self) -> int:
        """Receive announced images when all earlier ones are being processed. Return their number."""
        if self._waiting or self._ring_is_removed:
            return 0
        image = self._subscriber.image
        self._waiting.extend(image(metadata) for metadata in self._subscriber.receive(RECEIVE_BATCH))
        return len(self._waiting)

    def _start(self, workers: Workers[_Job[Made]]) -> bool:
        """Give the next images to a thread. Return whether there were images and a free thread."""
        waiting, jobs = self._waiting, []
        if not waiting or workers.n_free <= 0:
            return False
        n_images = min(self._task_images, -(-len(waiting) // max(1, self._n_threads)))
        while waiting and len(jobs) < n_images and self._enter_slot(waiting[0].image_id):
            image = waiting.popleft()
            is_certain = not self._output.looks_at_pixels or self._reader.has_cursor_for(image.metadata)
            is_missing = not is_certain and not self._reader.expect(image.metadata)
            jobs.append(_Job[Made](image, is_certain, is_overwritten=is_missing))
        if jobs:
            self._jobs.extend(jobs)
            workers.start(jobs)
        return bool(jobs)

    def _enter_slot(self, image_id: int) -> bool:
        """Reserve the output slot, unless an image with another id is being made for it (after a restart)."""
        slot = image_id % self._output.n_slots
        if slot in self._busy_slots:
            return False
        self._busy_slots.add(slot)
        return True

    def _work(self, job: _Job[Made]) -> None:
        """Make the output of one image. Runs in any thread."""
        image, output = job.image, self._output
        try:
            job.is_overwritten |= self._is_known_overwritten(job) or self._is_too_late_for(job)
            if not job.is_overwritten:
                try:
                    job.made = output.make(image)
                except Exception as error:  # noqa: BLE001  (a user's function may raise anything)
                    job.error = error
                job.is_overwritten = self._is_known_overwritten(job)
                self._learn_from(job)
            if job.is_overwritten or job.error:
                job.made = output.blank(image)
        except SourceError as error:
            job.error = error
        finally:
            job.done_at = time.monotonic()

    def _is_known_overwritten(self, job: _Job[Made]) -> bool:
        return job.is_certain and self._output.looks_at_pixels and not self._reader.holds(job.image.metadata)

    def _is_too_late_for(self, job: _Job[Made]) -> bool:
        """Return whether an image would be overwritten during its processing, as those before it were.

        Without this, a stage that is slower than its source spends all its time on overwritten images.
        """
        needed = self._slots_needed
        return needed > 0 and job.is_certain and self._reader.slots_left(job.image.metadata) < needed

    def _learn_from(self, job: _Job[Made]) -> None:
        if not (job.is_certain and self._output.looks_at_pixels):
            return
        if job.is_overwritten:
            n_slots = self._config.n_slots
            self._slots_needed = min(n_slots // 2, max(LEAST_SLOTS_NEEDED, 2 * self._slots_needed))
        elif self._slots_needed and self._reader.slots_left(job.image.metadata) > self._config.n_slots // 2:
            self._slots_needed = 0

    def _publish(self, *, wait: bool = False) -> None:
        """Publish finished images in order, up to the first unfinished one.

        `wait`: include images whose verdict is not due yet.
        """
        jobs, held = self._jobs, self._held
        # The first image answers for those after it.
        has_source: bool | None = None
        while jobs and jobs[0].done_at:
            job = jobs.popleft()
            if job.is_certain and has_source is None:
                has_source = not self._output.looks_at_pixels or self._reader.is_certain(job.image.metadata)
            if not (job.is_certain and has_source):
                held.add(job, [job.image.metadata], job.done_at, [job.is_overwritten])
            elif held:
                held.add_judged(job, [job.is_overwritten])
            else:
                self._publish_job(job)
        if not held:
            return
        for job, (is_overwritten,) in held.release(wait=wait):
            if is_overwritten and not job.is_overwritten:
                job.is_overwritten = True
                job.made = self._output.blank(job.image)
            self._publish_job(job)

    def _publish_job(self, job: _Job[Made]) -> None:
        output, metadata = self._output, job.image.metadata
        if job.made is None:
            raise job.error or SourceError(f"image {metadata.image_id}: no output was made")
        if job.is_overwritten:
            self.n_overwritten += 1
            metadata.status = ID_MISSMATCH
        elif job.error:
            self.n_failed += 1
            if not self._is_failure_logged:
                # Not kept until the period ends: the frames of its traceback keep the image's slot.
                logger.error("processing failed: %s", job.error, exc_info=job.error)
                self._is_failure_logged = True
            if output.status_of_failed is not None:
                metadata.status = output.status_of_failed  # pyright: ignore[reportAttributeAccessIssue]
        output.publish(metadata, job.made)
        self._busy_slots.discard(metadata.image_id % output.n_slots)
        self.n_published += 1

    def _report(self) -> None:
        self._subscriber.check()
        if not self._statistics.write_if_due():
            return
        self._reader.log_refusal()
        self._is_failure_logged = False
        if not self._held:
            self._watch_source()

    def _watch_source(self) -> None:
        if self._output.looks_at_pixels:
            self._reader.watch_source()

    def _pairs(self, period: Period) -> dict[str, object]:
        return {
            "source": self._subscriber.suffix,
            **period.rate(metrics.IMAGES_PROCESSED),
            **self._output.pairs(period),
            "n_overwritten_images": period.count(metrics.IMAGES_OVERWRITTEN),
            "n_failed_images": period.count(metrics.IMAGES_FAILED),
            "n_dropped_messages": period.count(metrics.MESSAGES_LOST),
            "n_malformed": period.count(metrics.MESSAGES_REJECTED),
        }
