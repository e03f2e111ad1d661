"""The loop of a live stream: from the metadata stream and the ring buffer to its viewers.

One thread. It takes an image out of its slot only when the schedule selects it and a viewer is connected, and
sends it only when it is certain that the slot held that image. It never waits for a viewer.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import zmq

from stddaq.config import DetectorConfig
from stddaq.daemon import log, metrics
from stddaq.daemon.main import StopRequest
from stddaq.daemon.metrics import Registry
from stddaq.daemon.statistics import Period, StatisticsLine
from stddaq.dataplane.image_subscriber import ImageSubscriber
from stddaq.dataplane.metadata import ImageMetadata
from stddaq.dataplane.taken_images import TakenImages
from stddaq.errors import CompressionError, ConfigError
from stddaq.streaming.encoders import Encoder
from stddaq.streaming.schedule import schedule_of
from stddaq.streaming.settings import FollowedSetting, socket_kind
from stddaq.streaming.viewers import Viewers

RECEIVE_BATCH = 1000
# The longest time for which a fast source delays the handling of viewers.
ATTEND_PERIOD_S = 0.02
CHECK_PERIOD_S = 0.2
# Pause between two reads: viewers wait no longer, and several images of a fast source arrive per wake-up.
PAUSE_S = 0.002
# The same while there are no viewers.
IDLE_PAUSE_S = 0.005
# Images of a source without cursor that wait for their verdict, in bytes.
MAX_HELD_BYTES = 512 * 2**20


@dataclass(frozen=True, slots=True)
class LiveSource:
    """Where the images come from: suffixes of the metadata stream and of the ring buffer."""

    metadata: str
    image: str


class LiveStream:
    """One live stream; see the module.

    Attributes:
        n_sent, n_overwritten, n_failed: images that were sent, and those that could not be.
    """

    def __init__(
        self,
        config: DetectorConfig,
        source: LiveSource,
        encoder: Encoder,
        viewers: Viewers,
        setting: FollowedSetting,
        type_name: str,
        registry: Registry,
    ) -> None:
        """Attach to the ring buffer and subscribe. Raise `ConfigError`, `EndpointError`, `GeometryError`.

        `type_name`: the type of the stream in the statistics. The counters are added to `registry`.
        """
        self._config, self._source, self._type_name = config, source, type_name
        self._encoder, self._viewers, self._setting = encoder, viewers, setting
        self._encoder.use(setting.current)
        self._schedule = schedule_of(setting.current)
        self._subscriber = ImageSubscriber(config, source.metadata, source.image)
        self._reader = self._subscriber.reader
        max_held = max(1, MAX_HELD_BYTES // config.image_bytes)
        self._taken = TakenImages(self._reader, max_held, self._copy, self._finish)
        self.n_sent = self.n_overwritten = self.n_failed = 0
        self._last_error: CompressionError | None = None
        self._register(registry)
        self._statistics = StatisticsLine(config, registry, self._pairs)

    def _register(self, registry: Registry) -> None:
        source, type_name = self._source.metadata, self._type_name
        self._subscriber.register(registry)
        registry.add(metrics.IMAGES_OVERWRITTEN, lambda: self.n_overwritten, source=source)
        registry.add(metrics.IMAGES_FAILED, lambda: self.n_failed, source=source)
        registry.add(metrics.IMAGES_SENT, lambda: self.n_sent, type=type_name)
        registry.add(metrics.VIEWER_IMAGES_DROPPED, lambda: self._viewers.n_dropped, type=type_name)
        registry.add(metrics.VIEWERS_CONNECTED, lambda: self._viewers.n_subscribed, type=type_name)

    def serve(self, stop: StopRequest) -> None:
        """Stream until asked to stop."""
        poller = zmq.Poller()
        for source in (self._subscriber.socket, self._viewers.fileno(), stop.fileno(), *self._sources()):
            poller.register(source, zmq.POLLIN)
        look_at, n_messages = time.monotonic() + CHECK_PERIOD_S, 0
        while not stop.poll():
            # After a pause there are images of a fast source: looking costs less than asking.
            if not n_messages:
                timeout = min(self._statistics.due_in, look_at - time.monotonic(), self._taken.due_in)
                poller.poll(0 if self._subscriber.is_waiting else int(max(0.0, timeout) * 1000) + 1)
                self._viewers.attend()
            n_messages = self._take_images()
            self._taken.finish_judged()
            self._send_waiting()
            if time.monotonic() >= look_at:
                look_at = time.monotonic() + CHECK_PERIOD_S
                self._look_around()
            self._report()
            if n_messages:
                self._viewers.attend(PAUSE_S if self._viewers.n_subscribed else IDLE_PAUSE_S)

    def _take_images(self) -> int:
        """Handle announced images, for a limited time. Return how many messages there were.

        Without viewers an image costs 3 us, most of it for receiving and parsing the message.
        """
        counts, viewers = self._subscriber.counts, self._viewers
        n_before, until = counts.n_images, time.monotonic() + ATTEND_PERIOD_S
        for metadata in self._subscriber.receive(RECEIVE_BATCH):
            if not viewers.n_subscribed:
                continue
            now = time.monotonic()
            self._take(metadata, now)
            if now > until:
                break
        return counts.n_images - n_before

    def _sources(self) -> Sequence[int]:
        """Return what else to poll."""
        return ()

    def _take(self, metadata: ImageMetadata, now: float) -> None:
        """Copy the image if it is to be sent."""
        if self._schedule.takes(metadata.image_id, now) and not self._taken.take(metadata):
            self.n_overwritten += 1

    def _send_waiting(self) -> None:
        """Send what could not be sent before."""

    def _copy(self, metadata: ImageMetadata) -> memoryview:
        return self._encoder.take(metadata, self._reader.ring.slot(metadata.image_id))

    def _finish(self, metadata: ImageMetadata, taken: memoryview, is_overwritten: bool) -> None:
        if is_overwritten:
            self.n_overwritten += 1
            self._encoder.discard(metadata, taken)
            return
        try:
            parts, image = self._encoder.parts(metadata, taken)
        except CompressionError as error:
            self._note_failed(metadata, error)
            return
        self.n_sent += self._viewers.send(parts, image)

    def _note_failed(self, metadata: ImageMetadata, error: CompressionError) -> None:
        self.n_failed += 1
        self._last_error = CompressionError(f"image {metadata.image_id}: {error}")

    def _look_around(self) -> None:
        """Do the less urgent work: a changed setting, silent connections, a removed ring."""
        try:
            if self._setting.poll(self._encoder.use):
                self._schedule = schedule_of(self._setting.current)
                self._viewers.use(socket_kind(self._setting.current))
                log.event("setting changed to %s", self._setting.current)
        except ConfigError as error:
            log.logger.error("the setting stays %s: %s", self._setting.current, error)
        self._viewers.close_silent()
        if self._taken:
            return
        self._reader.refresh()
        if self._viewers.n_subscribed:
            self._reader.watch_source()
        else:
            self._reader.published_ids.ignore()

    def _report(self) -> None:
        self._subscriber.check()
        if not self._statistics.write_if_due():
            return
        self._reader.log_refusal()
        if self._last_error:
            log.logger.warning("images do not fit the configuration: %s", self._last_error)
            self._last_error = None

    def _pairs(self, period: Period) -> dict[str, object]:
        return {
            "port": self._viewers.port,
            "type": self._type_name,
            "source": self._source.metadata,
            **period.rate(metrics.IMAGES_RECEIVED),
            "n_subscribers": period.total(metrics.VIEWERS_CONNECTED),
            "n_sent_images": period.count(metrics.IMAGES_SENT),
            "n_viewer_drops": period.count(metrics.VIEWER_IMAGES_DROPPED),
            "n_overwritten_images": period.count(metrics.IMAGES_OVERWRITTEN),
            "n_skipped_ids": period.count(metrics.IDS_SKIPPED),
            "n_dropped_messages": period.count(metrics.MESSAGES_LOST),
            "n_malformed": period.count(metrics.MESSAGES_REJECTED),
            "n_failed_images": period.count(metrics.IMAGES_FAILED),
        }

    def close(self) -> None:
        """Disconnect from the source."""
        self._subscriber.close()
