"""`std_delay_filter` holds announcements back, so that a run can record what came before its start.

The pixels stay in the ring buffer `image`, whose size limits how many images can wait.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence

import zmq

from stddaq.closing import Closing
from stddaq.config import DetectorConfig
from stddaq.daemon import metrics
from stddaq.daemon.log import event, logger, ready
from stddaq.daemon.main import StopRequest, run
from stddaq.daemon.metrics import Registry
from stddaq.daemon.statistics import Period, StatisticsLine
from stddaq.dataplane.image_subscriber import ImageSubscriber
from stddaq.dataplane.metadata import ID_MISSMATCH, ImageMetadata, ring_suffix
from stddaq.dataplane.metadata_publisher import MetadataPublisher
from stddaq.dataplane.published_ids import Epochs
from stddaq.errors import ConfigError
from stddaq.processing.service import ServiceParser
from stddaq.text import mismatch, shown

PROGRAM = "std_delay_filter"
# The name in the C++ sources, and the one in their documentation.
SUFFIXES = ("delay-filter", "delay")
RING = "image"
# Slots for the services that read the images after they have left.
RESERVED_SLOTS = 998
BATCH_LIMIT = 1000


class DelayQueue:
    """The images that wait, in order. No I/O."""

    def __init__(self, delay: float, n_slots: int) -> None:
        """Images leave after `delay` seconds, or when `n_slots` - `RESERVED_SLOTS` of them wait."""
        self.capacity = max(1, n_slots - RESERVED_SLOTS)
        self._delay = delay
        self._images: deque[tuple[float, ImageMetadata]] = deque()

    def __len__(self) -> int:
        """Return how many images wait."""
        return len(self._images)

    def add(self, metadata: ImageMetadata, now: float) -> None:
        """Add the newest image."""
        self._images.append((now, metadata))

    @property
    def due_at(self) -> float:
        """When the next image leaves; infinite if none waits."""
        return self._images[0][0] + self._delay if self._images else math.inf

    def take(self, now: float) -> Iterator[tuple[ImageMetadata, float]]:
        """Yield the images that leave at `now`, and how long each has waited."""
        images = self._images
        while images and (len(images) >= self.capacity or images[0][0] + self._delay <= now):
            since, metadata = images.popleft()
            yield metadata, now - since

    def take_all(self, now: float) -> Iterator[tuple[ImageMetadata, float]]:
        """Yield all images that wait."""
        while self._images:
            since, metadata = self._images.popleft()
            yield metadata, now - since


class DelayFilter(Closing):
    """A running delay filter: the subscription, the stream of later announcements, and the loop."""

    def __init__(self, config: DetectorConfig, source: str) -> None:
        """Raise `EndpointError` and `GeometryError`."""
        self._config, self._source = config, source
        self._queue = DelayQueue(config.delay_filter_timeout, config.n_slots)
        self.n_passed = self.n_overwritten = self._n_overwritten_logged = 0
        self.last_delay = self._rate_logged = 0.0
        self._stream = MetadataPublisher(config, *SUFFIXES)
        try:
            self._subscriber = ImageSubscriber(config, source)
        except BaseException:
            self._stream.close()
            raise
        self._reader = self._subscriber.reader
        # Of a source without cursor: readers of these announcements judge its images again.
        self._ids = Epochs(config.n_slots)
        self._statistics = StatisticsLine(config, self._registry(), self._pairs)

    def serve(self, stop: StopRequest) -> None:
        """Hold images back until asked to stop; then pass on those that wait."""
        poller = zmq.Poller()
        for readable in (self._subscriber.socket, self._stream.socket, stop.fileno()):
            poller.register(readable, zmq.POLLIN)
        while not stop.poll():
            delay = min(self._statistics.due_in, self._queue.due_at - time.monotonic())
            poller.poll(0 if self._subscriber.is_waiting else max(0, math.ceil(delay * 1000)))
            self._stream.count_subscribers()
            self._receive()
            self._subscriber.check()
            if self._statistics.write_if_due():
                self._look_around()
        # Announcements that have arrived and wait in the socket.
        self._receive()
        self._pass_on(self._queue.take_all(time.monotonic()))

    def _receive(self) -> None:
        now = time.monotonic()
        for metadata in self._subscriber.receive(BATCH_LIMIT):
            if not self._reader.has_cursor_for(metadata):
                self._ids.publish(metadata.image_id)
            self._queue.add(metadata, now)
            # Images that have to leave early leave one by one, as they come.
            if len(self._queue) >= self._queue.capacity:
                self._pass_on(self._queue.take(now))
        self._pass_on(self._queue.take(time.monotonic()))

    def _pass_on(self, images: Iterator[tuple[ImageMetadata, float]]) -> None:
        for metadata, self.last_delay in images:
            if self._is_overwritten(metadata):
                self.n_overwritten += 1
                metadata.status = ID_MISSMATCH
            self.n_passed += 1
            # The number of this stream; the sequence is that of the ring.
            metadata.number = self.n_passed
            self._stream.send(metadata)

    def _is_overwritten(self, metadata: ImageMetadata) -> bool:
        if self._reader.has_cursor_for(metadata):
            return not self._reader.holds(metadata)
        return self._ids.is_suspect(metadata.image_id)

    def _look_around(self) -> None:
        self._reader.log_refusal()
        if not self._queue:
            self._reader.refresh()
        n_overwritten = self.n_overwritten - self._n_overwritten_logged
        self._n_overwritten_logged = self.n_overwritten
        if n_overwritten:
            logger.warning("%d images were overwritten while they waited", n_overwritten)

    def _log_longest_delay(self, rate: float) -> None:
        """Log how long images can wait at this rate, once, and when the rate has doubled or halved."""
        if not rate or self._rate_logged / 2 < rate < self._rate_logged * 2:
            return
        self._rate_logged = rate
        wanted, longest = self._config.delay_filter_timeout, self._queue.capacity / rate
        if longest < wanted:
            logger.warning(
                "at %.0f Hz images wait %.2f s, not %d s: the ring buffer has room for no more, "
                "increase ram_buffer_gb",
                rate,
                longest,
                wanted,
            )
        else:
            event("at %.0f Hz images can wait %.1f s, and do %d s", rate, longest, wanted)

    def _registry(self) -> Registry:
        registry = Registry(self._config.detector_name, PROGRAM)
        self._subscriber.register(registry)
        registry.add(metrics.IMAGES_PASSED, lambda: self.n_passed)
        registry.add(metrics.IMAGES_WAITING, self._queue.__len__)
        registry.add(metrics.IMAGES_OVERWRITTEN, lambda: self.n_overwritten, source=self._source)
        return registry

    def _pairs(self, period: Period) -> Mapping[str, object]:
        received = period.rate(metrics.IMAGES_RECEIVED)
        self._log_longest_delay(period.count(metrics.IMAGES_RECEIVED) / period.seconds)
        return {
            "source": self._source,
            **received,
            "n_subscribers": self._stream.count_subscribers(),
            "n_passed_images": period.count(metrics.IMAGES_PASSED),
            "n_waiting": len(self._queue),
            "delay_ms": round(self.last_delay * 1000),
            "n_overwritten_images": period.count(metrics.IMAGES_OVERWRITTEN),
            "n_dropped_messages": period.count(metrics.MESSAGES_LOST),
            "n_malformed": period.count(metrics.MESSAGES_REJECTED),
        }

    def close(self) -> None:
        """Deliver announcements on their way, and disconnect."""
        self._stream.close()
        self._subscriber.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the delay filter. Return the exit code."""
    parser = ServiceParser(PROGRAM, "Announce every image again, delay_filter_timeout seconds later.")
    return run(parser, _serve, argv)


def _serve(config: DetectorConfig, args: argparse.Namespace, stop: StopRequest) -> None:
    source = args.source_suffix
    if ring_suffix(source) != RING or source in SUFFIXES:
        raise ConfigError(mismatch("--source_suffix", f'"{RING}" or "filter"', shown(source)))
    with DelayFilter(config, source) as service:
        ready(
            "%s of %s for %d s on %s", source, config.detector_name, config.delay_filter_timeout, SUFFIXES[0]
        )
        service.serve(stop)
