"""The receiving end of a stage: the source's metadata stream, its ring buffer, and what was lost of both."""

from __future__ import annotations

import zmq

from stddaq.config import DetectorConfig
from stddaq.daemon.log import logger
from stddaq.dataplane import endpoints
from stddaq.dataplane.image import Image
from stddaq.dataplane.metadata import ImageMetadata, MetadataRules, is_ring, parse, ring_suffix
from stddaq.dataplane.published_ids import Announcements
from stddaq.dataplane.ring_buffer import RingBuffer


class Intake:
    """Receives the images of a metadata stream.

    Attributes:
        socket: SUB socket, for pollers.
        n_lost_messages: messages that were published and not received, known from their running numbers.
        n_malformed: messages that are not the metadata of an image of this detector.
    """

    def __init__(self, config: DetectorConfig, suffix: str) -> None:
        """Attach to the ring buffer and subscribe. Raises `EndpointError` and `GeometryError`."""
        self._config, self.suffix = config, suffix
        stream = endpoints.metadata_stream(config.detector_name, suffix)
        self._ring_stream = endpoints.metadata_stream(config.detector_name, ring_suffix(suffix))
        self._rules = MetadataRules(config, suffix)
        self._ring = RingBuffer(config, suffix)
        self._announcements = Announcements(self._ring_stream, self._rules, config.n_slots)
        self._context = zmq.Context()
        self.socket = endpoints.open_socket(self._context, zmq.SUB)
        self.socket.subscribe(b"")
        self.socket.connect(stream)
        self._sequence_counts = is_ring(suffix)
        self._number = 0
        self.n_lost_messages = 0
        self.n_malformed = 0
        self._refused: str | None = None

    def receive(self, limit: int) -> list[Image]:
        """The images that have been announced, at most `limit`, in order. 3 us per image."""
        receive, images = self.socket.recv, []
        for _ in range(limit):
            try:
                metadata = parse(receive(zmq.NOBLOCK))
            except zmq.Again:
                break
            if metadata is None:
                self.n_malformed += 1
                self._number += 1  # It was received; should it have had a number, this was it.
                continue
            self._count(metadata.number or (metadata.sequence if self._sequence_counts else 0))
            if self._rules.accepts(metadata):
                images.append(Image(metadata, self._ring))
            else:
                self.n_malformed += 1
                self._refused = self._rules.problem(metadata)
        return images

    def _count(self, number: int) -> None:
        if number:
            if self._number and number > self._number + 1:
                self.n_lost_messages += number - self._number - 1
            self._number = number

    def can_tell(self, image: Image) -> bool:
        """Whether the ring says what the image's slot holds; if not, hear what its source announces."""
        if self._ring.has_cursor and image.metadata.sequence:
            return True
        self._announcements.listen()
        self._announcements.expect(image.image_id)
        return False

    def is_overwritten(self, metadata: ImageMetadata) -> bool:
        """Whether the slot holds another image by now, where `can_tell`. For any thread."""
        return not self._ring.holds(metadata.image_id, metadata.sequence)

    def slots_left(self, metadata: ImageMetadata) -> int:
        """How many images the source can still publish before it is at this one's slot, where `can_tell`."""
        return self._config.n_slots - (self._ring.sequence - metadata.sequence)

    @property
    def hold(self) -> float:
        """Seconds after which `is_suspect` may be asked."""
        return self._announcements.hold

    def catch_up(self) -> None:
        """Hear what was announced so far."""
        self._announcements.catch_up()

    def is_suspect(self, metadata: ImageMetadata) -> bool:
        """Whether the slot may hold another image, where the ring does not tell. Ask in order."""
        return self._announcements.is_suspect(metadata) or self._ring.is_replaced()

    def refresh(self) -> None:
        """Attach anew when somebody removed the ring buffer by hand. Only while no image is looked at."""
        if not self._ring.is_current():
            logger.warning("the ring buffer of %s was removed, attaching to a new one", self.suffix)
            self._ring.close()
            self._ring = RingBuffer(self._config, self.suffix)

    def pairs(self) -> dict[str, object]:
        """The losses since the last call, for the statistics line."""
        if self._refused:
            logger.warning("images do not fit the configuration: %s", self._refused)
        pairs: dict[str, object] = {
            "n_lost_messages": self.n_lost_messages,
            "n_malformed": self.n_malformed,
        }
        self.n_lost_messages, self.n_malformed, self._refused = 0, 0, None
        return pairs

    def close(self) -> None:
        """Unsubscribe and detach."""
        self._context.destroy(linger=0)
        self._announcements.close()
        self._ring.close()
