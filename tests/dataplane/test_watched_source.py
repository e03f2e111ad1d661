"""A reader that was stopped while a source without cursor overwrote its ring knows it afterwards."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
from support.peers.cpp_services import CppSource
from support.processes.deployment import Deployment

from stddaq.config import DetectorConfig
from stddaq.dataplane.image_publisher import ImagePublisher
from stddaq.dataplane.ring_reader import HeldImages, RingReader


@pytest.fixture
def deployment(make_deployment: Callable[..., Deployment]) -> Deployment:
    return make_deployment(image_pixel_height=8, image_pixel_width=16)


@pytest.fixture
def reader(deployment: Deployment) -> Iterator[RingReader]:
    reader = RingReader(DetectorConfig.parse(deployment.config), "image")
    yield reader
    reader.close()


def test_images_are_overwritten_although_the_source_has_ended_before_the_first_one_was_read(
    deployment: Deployment, reader: RingReader
) -> None:
    with CppSource(deployment.config) as source:
        reader.watch_source()
        source.wait_for_subscriber()
        for image_id in range(1900):
            source.publish(image_id, source.ring.read(image_id))
        # The reader has received the announcements of the first batch only.
        held, verdicts = HeldImages[str](reader), {}
        for name, first in (("old", 0), ("new", 1700)):
            images = [source.message(image_id) for image_id in range(first, first + 200)]
            for metadata in images:
                assert reader.expect(metadata)
            held.add(name, images, time.monotonic())
            verdicts |= {name: set(found) for name, found in held.release(wait=True)}
        assert verdicts == {"old": {True}, "new": {False}}


def test_a_source_with_cursor_is_not_subscribed_to(deployment: Deployment, reader: RingReader) -> None:
    reader.watch_source()
    with ImagePublisher(DetectorConfig.parse(deployment.config)) as publisher:
        assert publisher.socket.poll(60_000)  # The subscription of before.
        assert publisher.count_subscribers() == 0
        reader.watch_source()
        assert publisher.socket.poll(60_000), "the end of the subscription"
        assert publisher.count_subscribers() == 0
