"""What both synchronisers share: the messages of receivers come in, announcements go out.

A synchroniser owns the image ring and binds the metadata stream `image`; receivers write the pixels, and push
the metadata of each part to `sync`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import zmq

from stddaq.closing import Closing
from stddaq.config import DetectorConfig
from stddaq.daemon import metrics
from stddaq.daemon.log import event, logger
from stddaq.daemon.metrics import Registry
from stddaq.daemon.statistics import Period, StatisticsLine
from stddaq.dataplane import endpoints
from stddaq.dataplane.connections import connection_counts, open_socket, watch_connections
from stddaq.dataplane.image_publisher import ImagePublisher
from stddaq.dataplane.ipc_sockets import Binding
from stddaq.dataplane.local_peers import accepts_connections
from stddaq.dataplane.metadata import ID_MISSMATCH, MISSING_PACKETS, ImageMetadata, MetadataRules
from stddaq.forwarding.lost_images import LostImages
from stddaq.forwarding.messages import parse_forwarded
from stddaq.forwarding.parts import number_of_pairs, parts_of

SOURCE = "image"
# Signals and statistics are checked at least once per this many messages.
BATCH_LIMIT = 1000


class Images(Protocol):
    """The images that wait, and what happened to them."""

    n_parts_received: int
    n_repeated: int
    n_late: int
    n_ambiguous: int
    n_incomplete: int
    longest_queue: int

    @property
    def n_waiting(self) -> int:
        """Images that wait."""
        ...

    @property
    def n_restarts(self) -> int:
        """How often the image ids started again."""
        ...


class Synchroniser(Closing):
    """The sockets, the image ring, and the reports of a synchroniser."""

    def __init__(self, program: str, config: DetectorConfig, images: Images) -> None:
        """Raise `EndpointError` and `GeometryError`."""
        self._config, self._images, self._parts = config, images, parts_of(config)
        self._rules = MetadataRules(config, SOURCE)
        self.lost = LostImages(config.stats_collection_period)
        self.n_refused = self.n_overwritten = self._n_restarts_logged = self._n_receivers = 0
        # Whole images of all pairs have one place for their marks.
        n_places = 1 if config.sender_sends_full_images else number_of_pairs(config)
        self._publisher = ImagePublisher(config, SOURCE, n_parts=n_places)
        self._context = zmq.Context()
        self.endpoint = endpoints.received_parts(config.detector_name)
        self._socket = open_socket(self._context, zmq.PULL)
        self._monitor = watch_connections(self._socket)
        try:
            self._binding = Binding(self._socket, self.endpoint)
        except BaseException:
            self._context.destroy(linger=0)
            self._publisher.close()
            raise
        self._statistics = StatisticsLine(config, self._registry(program), self._pairs)
        self.poller = zmq.Poller()
        for readable in (self._socket, self._publisher.socket, self._monitor):
            self.poller.register(readable, zmq.POLLIN)

    def receive(self) -> Iterator[ImageMetadata | None]:
        """Yield the messages of receivers that have arrived, at most `BATCH_LIMIT`; None for a bad one."""
        receive = self._socket.recv
        for _ in range(BATCH_LIMIT):
            try:
                message = receive(zmq.NOBLOCK)
            except zmq.Again:
                return
            metadata = parse_forwarded(message)
            yield metadata if self.accepts(metadata) else None

    def accepts(self, metadata: ImageMetadata | None) -> bool:
        """Return whether a message is the metadata of an image of this detector. Count it if not."""
        if metadata is not None and self._rules.accepts(metadata):
            return True
        self.n_refused += 1
        return False

    def announce(self, metadata: ImageMetadata, marks: Sequence[tuple[int, int]]) -> None:
        """Announce an image whose pixels are in its slot, with these marks; without any if of C++."""
        metadata.ClearField("forwarding")
        if self._publisher.announce_parts(metadata, marks) == ID_MISSMATCH:
            self.n_overwritten += 1

    def announce_blank(self, metadata: ImageMetadata) -> None:
        """Announce an image whose pixels did not arrive: zeros, status `missing_packets`.

        One whose slot may have another image by now has status `id_missmatch`, and no pixels.
        """
        marks: list[tuple[int, int]] = []
        if metadata.status != ID_MISSMATCH:
            metadata.status = MISSING_PACKETS
            marks = [(0, self._publisher.blank_part(metadata.image_id))]
        self.announce(metadata, marks)

    def sleep(self, due_at: float) -> None:
        """Wait for messages, until `due_at` or until something else is to be done."""
        delay = min(self._statistics.due_in, due_at - time.monotonic())
        self.poller.poll(max(0, math.ceil(delay * 1000)))

    def check(self) -> None:
        """Bind again what was removed, and report. Call it in every turn of the loop."""
        self._publisher.count_subscribers()
        self._binding.check()
        if self._images.n_restarts != self._n_restarts_logged:
            self._n_restarts_logged = self._images.n_restarts
            event("the image ids restart (restart %d)", self._n_restarts_logged)
        self._report_lost(time.monotonic())
        for n_receivers in connection_counts(self._monitor):
            if n_receivers < self._n_receivers:
                logger.warning("a receiver has disconnected%s", self._without_receiver())
            self._n_receivers = n_receivers
        self._statistics.write_if_due()

    def _report_lost(self, now: float) -> None:
        for line in self.lost.lines(now):
            event("%s", line)

    def _without_receiver(self) -> str:
        name = self._config.detector_name
        missing = [
            str(part.index)
            for part in self._parts
            if not accepts_connections(endpoints.receiver(name, part.index))
        ]
        return f", none runs for part {', '.join(missing)}" if missing else ""

    def _registry(self, program: str) -> Registry:
        registry, images = Registry(self._config.detector_name, program), self._images
        self._publisher.register(registry)
        registry.add(metrics.IMAGES_OVERWRITTEN, lambda: self.n_overwritten, source=SOURCE)
        registry.add(metrics.IMAGES_INCOMPLETE, lambda: images.n_incomplete)
        registry.add(metrics.IMAGES_NOT_RECEIVED, lambda: self.lost.n_lost)
        registry.add(metrics.IMAGES_WAITING, lambda: images.n_waiting)
        registry.add(metrics.IDS_RESTARTED, lambda: images.n_restarts)
        registry.add(metrics.PARTS_RECEIVED, lambda: images.n_parts_received)
        registry.add(metrics.PARTS_IGNORED, lambda: images.n_late, reason="late")
        registry.add(metrics.PARTS_IGNORED, lambda: images.n_repeated, reason="repeated")
        registry.add(metrics.PARTS_IGNORED, lambda: images.n_ambiguous, reason="ambiguous")
        registry.add(metrics.MESSAGES_REJECTED, lambda: self.n_refused, reason="malformed")
        return registry

    def _pairs(self, period: Period) -> Mapping[str, object]:
        count = period.count
        longest, self._images.longest_queue = self._images.longest_queue, self._images.n_waiting
        return {
            **period.rate(metrics.PARTS_RECEIVED),
            "n_corrupted_images": count(metrics.IMAGES_INCOMPLETE),
            "queue": longest,
            "n_images": count(metrics.IMAGES_PUBLISHED),
            "n_not_received": count(metrics.IMAGES_NOT_RECEIVED),
            "n_overwritten": count(metrics.IMAGES_OVERWRITTEN),
            "n_late": count(metrics.PARTS_IGNORED, reason="late"),
            "n_repeated": count(metrics.PARTS_IGNORED, reason="repeated"),
            "n_ambiguous": count(metrics.PARTS_IGNORED, reason="ambiguous"),
            "n_malformed": count(metrics.MESSAGES_REJECTED),
        }

    def close(self) -> None:
        """List what is lost, deliver announcements on their way; release the sockets and the image ring."""
        self._report_lost(math.inf)
        self._socket.disable_monitor()
        self._binding.close()
        self._context.destroy(linger=0)
        self._publisher.close()
