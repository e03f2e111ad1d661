"""The delay filter: which images leave when, and with real processes."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from support.peers.cpp_services import CppSource
from support.processes.deployment import Deployment
from support.processes.recording import Rig, assert_saved, images_of, pixels_of
from support.processes.stream_readers import StreamReader

from stddaq.config import DetectorConfig
from stddaq.dataplane.image_publisher import ImagePublisher
from stddaq.dataplane.metadata import GOOD_IMAGE, ID_MISSMATCH, ImageMetadata
from stddaq.processing.delay_filter import RESERVED_SLOTS, DelayQueue, main

DELAY_S = 1


def fed(n_slots: int, *image_ids: int) -> DelayQueue:
    queue = DelayQueue(10.0, n_slots)
    for image_id in image_ids:
        queue.add(ImageMetadata(image_id=image_id), 0.0)
    return queue


def taken(queue: DelayQueue, now: float) -> list[int]:
    return [metadata.image_id for metadata, _ in queue.take(now)]


def test_all_images_that_are_due_leave_also_without_a_new_one() -> None:
    queue = fed(2000, 1, 2, 3)
    queue.add(ImageMetadata(image_id=4), 5.0)
    assert taken(queue, 9.9) == []
    assert queue.due_at == 10.0
    assert taken(queue, 10.0) == [1, 2, 3]
    assert queue.due_at == 15.0
    assert [(metadata.image_id, waited) for metadata, waited in queue.take(16.0)] == [(4, 11.0)]
    assert len(queue) == 0


def test_images_leave_early_when_the_ring_has_no_room_for_more() -> None:
    assert taken(fed(1000, 1, 2, 3, 4, 5), 0.0) == [1, 2, 3, 4]
    queue = fed(RESERVED_SLOTS + 100, *range(99))
    assert taken(queue, 0.0) == []
    queue.add(ImageMetadata(image_id=99), 0.0)
    assert taken(queue, 0.0) == [0]


class Filtered:
    """A delay filter and the reader of its stream."""

    def __init__(self, deployment: Deployment, delay: int = DELAY_S) -> None:
        deployment.write_config(delay_filter_timeout=delay)
        self.deployment = deployment
        self.config = DetectorConfig.parse(deployment.config)
        self.service = deployment.start("std_delay_filter")


@pytest.fixture
def filtered(deployment: Deployment) -> Filtered:
    return Filtered(deployment)


@pytest.fixture
def lasting(deployment: Deployment) -> Filtered:
    """Return a filter from which an image leaves only when the next one comes, or at the end."""
    return Filtered(deployment, delay=1000)


@pytest.mark.parametrize("suffix", ["delay-filter", "delay"])
def test_an_image_leaves_after_the_delay_while_the_source_is_silent(filtered: Filtered, suffix: str) -> None:
    with (
        ImagePublisher(filtered.config) as source,
        StreamReader(filtered.deployment, suffix) as reader,
    ):
        assert source.wait_for_subscribers(1, 20)
        published_at = time.monotonic()
        sequence = source.publish(7, pixels_of(7))
        (image,) = reader.receive(1)
        # The filter may have looked at its clock before it received the image.
        assert time.monotonic() - published_at >= DELAY_S / 2
    assert (image.image_id, image.status, image.metadata.sequence) == (7, GOOD_IMAGE, sequence)
    assert image.is_held
    assert np.array_equal(image.pixels, pixels_of(7))


def test_the_smallest_ring_holds_one_image_back_which_leaves_at_the_end(lasting: Filtered) -> None:
    with ImagePublisher(lasting.config) as source, StreamReader(lasting.deployment, "delay") as reader:
        assert source.wait_for_subscribers(1, 20)
        for image_id in range(1, 6):
            source.publish(image_id, pixels_of(image_id))
        assert [image.image_id for image in reader.receive(4)] == [1, 2, 3, 4]
        lasting.service.wait_for_line("the ring buffer has room for no more")
        lasting.service.end()
        assert [image.image_id for image in reader.receive(1)] == [5]


def test_an_image_that_is_overwritten_while_it_waits_is_not_announced_as_good(lasting: Filtered) -> None:
    with ImagePublisher(lasting.config) as source, StreamReader(lasting.deployment, "delay") as reader:
        assert source.wait_for_subscribers(1, 20)
        for image_id in (7, 7 + source.n_slots):
            source.publish(image_id, pixels_of(image_id))
        images = reader.receive(1)
        lasting.service.wait_for_count("n_overwritten_images", 1)
        lasting.service.end()
        images += reader.receive(1)
    assert [(image.image_id, image.status) for image in images] == [(7, ID_MISSMATCH), (1007, GOOD_IMAGE)]


def test_images_of_a_cpp_source_are_judged_by_the_published_ids(lasting: Filtered) -> None:
    with (
        CppSource(lasting.deployment.config) as source,
        StreamReader(lasting.deployment, "delay") as reader,
    ):
        source.wait_for_subscriber()
        for image_id in (7, 8, 1008, 1009):
            source.publish(image_id, pixels_of(image_id))
        # The last one leaves at the end.
        images = reader.receive(3)
    assert [image.image_id for image in images] == [7, 8, 1008]
    assert [image.status for image in images] == [GOOD_IMAGE, ID_MISSMATCH, GOOD_IMAGE]


def test_a_run_records_what_was_published_before_its_start(deployment: Deployment, directory: Path) -> None:
    lasting = Filtered(deployment, delay=1000)
    with Rig(deployment, directory) as rig:
        rig.start_driver("-s", "delay-filter").start_writers()
        assert rig.source.wait_for_subscribers(1, 20)
        images = images_of(range(3, 43))
        rig.source.publish(3, images[0].pixels)
        rig.client.start(directory, n_image=len(images))
        rig.client.wait_until_ready(30)
        for image in images[1:]:
            rig.source.publish(image.image_id, image.pixels)
        lasting.service.wait_for_count("n_passed_images", len(images) - 1)
        lasting.service.end()
        account = rig.end()
    assert_saved(account, images)


def test_compressed_images_are_refused(deployment: Deployment, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["-s", "blosc2", str(deployment.config_path)])
    assert 'expected "image" or "filter", got "blosc2"' in capsys.readouterr().err
