"""Messages that a subscriber receives and counts; with a fake connection, without a ring."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest
from support.processes.deployment import make_config

from stddaq.config import DetectorConfig
from stddaq.dataplane.image_subscriber import ImageSubscriber
from stddaq.dataplane.metadata import ImageMetadata, MetadataRules
from stddaq.dataplane.ring_layout import CODE_SHIFT
from stddaq.dataplane.ring_reader import RingReader
from stddaq.dataplane.stream_counts import StreamCounts

CONFIG = DetectorConfig.parse(make_config(image_pixel_height=4, image_pixel_width=6))
GARBLED = b"\xff\xff"


class FakeConnection:
    def __init__(self, messages: list[bytes]) -> None:
        self.messages = messages

    def receive(self, limit: int) -> list[bytes]:
        received, self.messages = self.messages[:limit], self.messages[limit:]
        return received


def subscriber_of(messages: list[bytes], *, sequence_is_number: bool = True) -> ImageSubscriber:
    # Skip __init__, which attaches to shared memory and opens sockets.
    reader: Any = RingReader.__new__(RingReader)
    reader.rules, reader._refusal = MetadataRules(CONFIG, "image"), None
    subscriber: Any = ImageSubscriber.__new__(ImageSubscriber)
    subscriber.counts, subscriber.reader = StreamCounts(), reader
    subscriber._connection, subscriber._waiting = FakeConnection(messages), deque()
    subscriber._sequence_is_number, subscriber._n_slots = sequence_is_number, 1000
    return subscriber


def message(image_id: int, sequence: int = 0, number: int = 0, height: int = 4) -> bytes:
    return ImageMetadata(
        image_id=image_id,
        height=height,
        width=6,
        size=48,
        dtype=2,  # pyright: ignore[reportArgumentType]
        status=1,  # pyright: ignore[reportArgumentType]
        sequence=sequence,
        number=number,
    ).SerializeToString()


def received(subscriber: ImageSubscriber, limit: int = 100) -> list[int]:
    return [metadata.image_id for metadata in subscriber.receive(limit)]


def test_garbled_message_is_counted_as_malformed_and_not_as_dropped() -> None:
    subscriber = subscriber_of([message(0, 10), GARBLED, message(2, 12)])
    assert received(subscriber) == [0, 2]
    assert (subscriber.counts.n_malformed, subscriber.counts.n_dropped) == (1, 0)


def test_image_of_another_geometry_is_malformed_once_and_its_reason_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    subscriber = subscriber_of([message(0, 10), message(1, 11, height=5), message(2, 12)])
    assert received(subscriber) == [0, 2]
    counts = subscriber.counts
    assert (counts.n_malformed, counts.n_dropped, counts.n_skipped) == (1, 0, 0)
    subscriber.reader.log_refusal()
    subscriber.reader.log_refusal()
    assert caplog.text.count("images do not fit the configuration: image 1: height") == 1


@pytest.mark.parametrize(
    ("newest", "lag"),
    [(12, 0), (700, 688), (12 + 10**6, 0)],
    ids=["received all", "700 published", "ring made again"],
)
def test_lag_is_what_the_source_has_published_since(newest: int, lag: int) -> None:
    code = 7 << CODE_SHIFT
    subscriber = subscriber_of([message(0, code + 11), message(1, code + 12)])
    ring: Any = SimpleNamespace(sequence=code + newest)
    subscriber.reader.ring = ring
    assert subscriber.lag == 0
    assert received(subscriber) == [0, 1]
    assert subscriber.lag == lag


def test_ring_without_cursor_of_the_source_shows_no_lag() -> None:
    subscriber = subscriber_of([message(0, 11), message(1, 12)])
    ring: Any = SimpleNamespace(sequence=(7 << CODE_SHIFT) + 700)
    subscriber.reader.ring = ring
    assert received(subscriber) == [0, 1]
    assert subscriber.lag == 0


def test_dropped_and_skipped_are_counted_separately() -> None:
    subscriber = subscriber_of([message(0, 10), message(5, 11), message(6, 14)])
    assert received(subscriber) == [0, 5, 6]
    assert (subscriber.counts.n_dropped, subscriber.counts.n_skipped) == (2, 4)


def test_running_number_of_a_filtered_stream_counts_and_its_sequence_does_not() -> None:
    messages = [message(0, 10, 1), message(7, 17, 2), message(9, 19, 4)]
    subscriber = subscriber_of(messages, sequence_is_number=False)
    assert received(subscriber) == [0, 7, 9]
    assert subscriber.counts.n_dropped == 1


def test_messages_beyond_the_limit_and_after_an_early_stop_are_received_later() -> None:
    subscriber = subscriber_of([message(i) for i in range(10)])
    assert received(subscriber, limit=3) == [0, 1, 2]
    assert not subscriber.is_waiting
    assert next(subscriber.receive(100)).image_id == 3
    assert subscriber.is_waiting
    assert received(subscriber) == [4, 5, 6, 7, 8, 9]
