"""The loop of a live stream: from the metadata stream and the ring buffer to whoever has subscribed.

One thread. It takes an image out of its slot only when the schedule wants it and somebody is there to see
it, and sends it only when it is clear that the slot held that very image. It waits for no subscriber, and
the source waits for nobody.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

import zmq

from stddaq.config import DetectorConfig
from stddaq.daemon import log, statistics
from stddaq.daemon.batching import Gathering
from stddaq.daemon.main import StopRequest
from stddaq.dataplane import endpoints
from stddaq.dataplane.metadata import ImageMetadata, MetadataRules, is_ring, parse, ring_suffix
from stddaq.dataplane.published_ids import Announcements
from stddaq.dataplane.ring_buffer import RingBuffer
from stddaq.errors import ConfigError
from stddaq.streaming.encoders import Encoder
from stddaq.streaming.schedule import schedule_of
from stddaq.streaming.settings import FollowedSetting
from stddaq.streaming.viewers import Viewers
from stddaq.wire.compression import CompressionError

RECEIVE_BATCH = 1000
# Subscribers are attended to so often at least, whatever the source does.
ATTEND_PERIOD_S = 0.02
LOOK_PERIOD_S = 0.2
# A viewer does not see it, and of a fast source several images come with one wake-up.
SHORTEST_PAUSE_S = 0.002
# Images of a foreign source that wait for their judgement, in bytes.
MAX_HELD_BYTES = 512 * 2**20


@dataclass(frozen=True, slots=True)
class LiveSource:
    """Where the images come from: suffixes of the metadata stream and of the ring buffer."""

    metadata: str
    image: str


@dataclass(frozen=True, slots=True)
class _Held:
    """An image of a source without cursor, out of its slot and not judged yet."""

    metadata: ImageMetadata
    taken: memoryview
    taken_at: float


class LiveStream:
    """One live stream; see the module."""

    def __init__(
        self,
        config: DetectorConfig,
        source: LiveSource,
        encoder: Encoder,
        subscribers: Viewers,
        setting: FollowedSetting,
        type_name: str,
    ) -> None:
        """Attach to the ring buffer and subscribe. Raises `EndpointError` and `GeometryError`."""
        self._config, self._source, self._type_name = config, source, type_name
        self._encoder, self._subscribers, self._setting = encoder, subscribers, setting
        self._schedule = schedule_of(setting.current)
        self._rules = MetadataRules(config, source.image)
        stream = endpoints.metadata_stream(config.detector_name, source.metadata)
        ring_stream = endpoints.metadata_stream(config.detector_name, ring_suffix(source.image))
        self._ring = RingBuffer(config, source.image)
        self._announcements = Announcements(ring_stream, self._rules, config.n_slots)
        self._context = zmq.Context()
        self._socket = endpoints.open_socket(self._context, zmq.SUB)
        self._socket.subscribe(b"")
        self._socket.connect(stream)
        self._numbers_are_sequences = is_ring(source.metadata)
        self._held: deque[_Held] = deque()
        self._max_held = max(1, MAX_HELD_BYTES // config.image_bytes)
        self._last_id: int | None = None
        self._last_number = 0
        self._counter = statistics.RateCounter()
        self._n_sent = self._n_skipped = self._n_lost = self._n_malformed = 0
        self._n_overwritten = self._n_failed = self._n_dropped_before = 0
        self._refused: str | None = None

    def serve(self, stop: StopRequest) -> None:
        """Stream until asked to stop."""
        poller = zmq.Poller()
        for source in (self._socket, self._subscribers.fileno(), stop.fileno()):
            poller.register(source, zmq.POLLIN)
        period = statistics.StatisticsTimer(self._config.stats_collection_period)
        gathering, look_at = Gathering.of_reader(self._config), time.monotonic() + LOOK_PERIOD_S
        while not stop.poll():
            poller.poll(self._timeout_ms(min(period.due_in, look_at - time.monotonic())))
            self._subscribers.attend()
            n_messages = self._take_images()
            pause = max(gathering.pause_after(n_messages), SHORTEST_PAUSE_S if n_messages else 0.0)
            self._send_judged()
            if time.monotonic() >= look_at:
                look_at = time.monotonic() + LOOK_PERIOD_S
                self._look_around()
            if period.due_in == 0:
                self._log_statistics(period.restart())
            if pause:
                self._subscribers.attend(pause)

    def _timeout_ms(self, seconds: float) -> int:
        if self._held:
            due = self._held[0].taken_at + self._announcements.hold
            seconds = min(seconds, due - time.monotonic())
        return int(max(0.0, seconds) * 1000) + 1

    def _take_images(self) -> int:
        """Handle what was announced, for a limited time. Returns how many messages were there.

        Without subscribers 3 us per image, most of it the receipt and the parsing of the message.
        """
        receive, accepts = self._socket.recv, self._rules.accepts
        count, subscribers = self._count, self._subscribers
        until = time.monotonic() + ATTEND_PERIOD_S
        for n_messages in range(RECEIVE_BATCH):
            try:
                metadata = parse(receive(zmq.NOBLOCK))
            except zmq.Again:
                return n_messages
            if metadata is None:
                self._n_malformed += 1
                continue
            count(metadata)
            if not accepts(metadata):
                self._n_malformed += 1
                self._refused = self._rules.problem(metadata)
                continue
            if not subscribers.n_subscribed:
                continue
            now = time.monotonic()
            if self._schedule.takes(metadata.image_id, now):
                self._stream(metadata)
            if now > until:
                return n_messages + 1
        return RECEIVE_BATCH

    def _count(self, metadata: ImageMetadata) -> None:
        """Find out what is missing before this image."""
        self._counter.count += 1
        image_id = metadata.image_id
        last_id, self._last_id = self._last_id, image_id
        if last_id is not None and image_id > last_id + 1:
            self._n_skipped += image_id - last_id - 1
        number = metadata.number or (metadata.sequence if self._numbers_are_sequences else 0)
        if number:
            if number > self._last_number + 1 and self._last_number:
                self._n_lost += number - self._last_number - 1
            self._last_number = number

    def _stream(self, metadata: ImageMetadata) -> None:
        """Take one image out of its slot, and send it if that is what the slot held."""
        ring, image_id = self._ring, metadata.image_id
        sequence = metadata.sequence
        can_tell = bool(sequence) and ring.has_cursor
        if can_tell and not ring.holds(image_id, sequence):
            self._n_overwritten += 1
            return
        if not can_tell:
            self._announcements.listen()
            self._announcements.expect(image_id)
            if len(self._held) >= self._max_held:
                self._wait_for_judgement()
        taken = self._encoder.take(metadata, ring.slot(image_id))
        if not can_tell:
            self._held.append(_Held(metadata, taken, time.monotonic()))
        elif ring.holds(image_id, sequence):
            self._send(metadata, taken)
        else:
            self._n_overwritten += 1
            self._encoder.discard(metadata, taken)

    def _wait_for_judgement(self) -> None:
        time.sleep(max(0.0, self._held[0].taken_at + self._announcements.hold - time.monotonic()))
        self._send_judged()

    def _send_judged(self) -> None:
        """Send the images of a source without cursor of which it is clear by now that they are good."""
        held, announcements = self._held, self._announcements
        if not held:
            return
        announcements.catch_up()
        while held and time.monotonic() - held[0].taken_at >= announcements.hold:
            image = held.popleft()
            if announcements.is_suspect(image.metadata) or self._ring.is_replaced():
                self._n_overwritten += 1
                self._encoder.discard(image.metadata, image.taken)
            else:
                self._send(image.metadata, image.taken)

    def _send(self, metadata: ImageMetadata, taken: memoryview) -> None:
        try:
            parts, image = self._encoder.parts(metadata, taken)
        except CompressionError as error:
            self._n_failed += 1
            self._refused = f"image {metadata.image_id}: {error}"
            return
        self._n_sent += self._subscribers.send(parts, image)

    def _look_around(self) -> None:
        """What need not be seen at once: a changed setting, silent connections, a ring that was removed."""
        try:
            if self._setting.poll():
                self._schedule = schedule_of(self._setting.current)
                log.event("setting changed to %s", self._setting.current)
        except ConfigError as error:
            log.logger.error("the setting stays %s: %s", self._setting.current, error)
        self._subscribers.close_silent()
        if not self._subscribers.n_subscribed and not self._held:
            self._announcements.ignore()
        if not self._ring.is_current() and not self._held:
            log.logger.warning("the ring buffer %s was removed, attaching to a new one", self._ring.name)
            self._ring.close()
            self._ring = RingBuffer(self._config, self._source.image)

    def _log_statistics(self, elapsed: float) -> None:
        dropped = self._subscribers.n_dropped
        statistics.log_statistics(
            self._config.detector_name,
            {
                "port": self._subscribers.port,
                "type": self._type_name,
                "source": self._source.metadata,
                **self._counter.pairs(elapsed),
                "n_subscribers": self._subscribers.n_subscribed,
                "n_sent_images": self._n_sent,
                "n_viewer_drops": dropped - self._n_dropped_before,
                "n_overwritten_images": self._n_overwritten,
                "n_skipped_ids": self._n_skipped,
                "n_lost_messages": self._n_lost,
                "n_malformed": self._n_malformed,
                "n_failed_images": self._n_failed,
            },
        )
        if self._refused:
            log.logger.warning("images do not fit the configuration: %s", self._refused)
            self._refused = None
        self._n_dropped_before = dropped
        self._n_sent = self._n_skipped = self._n_lost = self._n_malformed = 0
        self._n_overwritten = self._n_failed = 0

    def close(self) -> None:
        """Leave the source."""
        self._context.destroy(linger=0)
        self._announcements.close()
        self._ring.close()
