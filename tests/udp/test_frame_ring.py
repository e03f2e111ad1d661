"""Frames from a receiver to its converter."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import numpy as np
import pytest
from support.processes.deployment import SHM_DIRECTORY, Deployment, wait_until

from stddaq.config import DetectorConfig
from stddaq.dataplane.ring_segments import SEQUENCE
from stddaq.errors import EndpointError, GeometryError
from stddaq.udp.frame_message import GIGAFROST_FRAME, SEQUENCE_MASK
from stddaq.udp.frame_ring import FRAME_SLOTS, FramePublisher, FrameSubscriber
from stddaq.udp.geometry import frame_bytes

MODULE = 3


@pytest.fixture
def config(deployment: Deployment) -> DetectorConfig:
    return DetectorConfig.load(deployment.config_path)


@pytest.fixture
def publisher(config: DetectorConfig) -> Iterator[FramePublisher]:
    with FramePublisher(config, MODULE) as publisher:
        yield publisher


@pytest.fixture
def subscriber(config: DetectorConfig, publisher: FramePublisher) -> Iterator[FrameSubscriber]:
    with FrameSubscriber(config, MODULE) as subscriber:
        wait_until(publisher.count_subscribers)
        yield subscriber


def publish(publisher: FramePublisher, *ids: int) -> None:
    for frame_id in ids:
        message = np.zeros((), GIGAFROST_FRAME)
        message["id"] = frame_id
        publisher.begin(frame_id)[:] = frame_id % 251
        publisher.commit(message)


def receive(subscriber: FrameSubscriber, n: int) -> list[np.ndarray]:
    received: list[np.ndarray] = []
    wait_until(lambda: received.extend(subscriber.receive(n)) or len(received) == n)
    return received


def test_frames_arrive_in_order_with_their_bytes(
    publisher: FramePublisher, subscriber: FrameSubscriber
) -> None:
    publish(publisher, 5, 6, 1007)
    messages = receive(subscriber, 3)
    assert [int(message["id"]) for message in messages] == [5, 6, 1007]
    for message in messages:
        assert subscriber.holds(message)
        assert (subscriber.frame(int(message["id"])) == int(message["id"]) % 251).all()


def test_a_converter_notices_that_its_slot_was_overwritten(
    publisher: FramePublisher, subscriber: FrameSubscriber
) -> None:
    publish(publisher, 5, 5 + FRAME_SLOTS)
    first, second = receive(subscriber, 2)
    assert not subscriber.holds(first)
    assert subscriber.holds(second)


def test_the_frame_of_the_same_id_after_a_restart_is_another_frame(
    publisher: FramePublisher, subscriber: FrameSubscriber
) -> None:
    publish(publisher, 5, 5)
    first, second = receive(subscriber, 2)
    assert not subscriber.holds(first)
    assert subscriber.holds(second)


def test_a_slot_that_is_being_written_is_not_trusted(
    publisher: FramePublisher, subscriber: FrameSubscriber
) -> None:
    publish(publisher, 5)
    (message,) = receive(subscriber, 1)
    publisher.begin(5)
    assert not subscriber.holds(message)


def test_frames_of_a_cpp_receiver_have_no_number_and_are_not_judged(
    publisher: FramePublisher, subscriber: FrameSubscriber
) -> None:
    publisher.socket.send((5).to_bytes(8, "little"))
    (message,) = receive(subscriber, 1)
    assert subscriber.holds(message)


def test_messages_without_an_id_are_counted(publisher: FramePublisher, subscriber: FrameSubscriber) -> None:
    publisher.socket.send(b"short")
    publish(publisher, 5)
    assert int(receive(subscriber, 1)[0]["id"]) == 5
    assert subscriber.n_malformed == 1


def test_one_receiver_has_a_module(config: DetectorConfig, publisher: FramePublisher) -> None:
    with pytest.raises(EndpointError, match=f"{config.detector_name}-{MODULE}: another running service"):
        FramePublisher(config, MODULE)
    with FramePublisher(config, MODULE + 1):
        pass


def test_a_smaller_ring_of_another_program_is_grown(config: DetectorConfig) -> None:
    path = SHM_DIRECTORY / f"{config.detector_name}-{MODULE}"
    with ExitStack() as made:
        path.write_bytes(b"\1" * 10 * frame_bytes(config))
        made.callback(path.unlink)
        subscriber = FrameSubscriber(config, MODULE)
        made.callback(subscriber.close)
        assert path.stat().st_size >= FRAME_SLOTS * frame_bytes(config)
        assert (subscriber.frame(9) == 1).all()


def test_a_ring_of_larger_frames_in_use_is_a_conflict(
    make_deployment: Callable[..., Deployment], config: DetectorConfig, publisher: FramePublisher
) -> None:
    values = config.as_json() | {"image_pixel_height": 64}
    with pytest.raises(GeometryError, match="the services that use it have another configuration"):
        FrameSubscriber(DetectorConfig.parse(values), MODULE)


def test_a_ring_that_was_removed_is_replaced(
    config: DetectorConfig, publisher: FramePublisher, subscriber: FrameSubscriber
) -> None:
    os.unlink(SHM_DIRECTORY / f"{config.detector_name}-{MODULE}")  # noqa: PTH108
    before = publisher._ring
    wait_until(lambda: publisher.count_subscribers() and publisher._ring is not before, 10.0)
    wait_until(lambda: subscriber.check() or subscriber._ring.is_current(), 10.0)
    publish(publisher, 7)
    (message,) = receive(subscriber, 1)
    assert subscriber.holds(message)
    assert (subscriber.frame(7) == 7).all()


def test_the_number_0_is_never_given(publisher: FramePublisher, subscriber: FrameSubscriber) -> None:
    """It means that the receiver gives none, so a slot that was overwritten would be trusted."""
    words = publisher._ring._words
    words[SEQUENCE] = (words[SEQUENCE] | SEQUENCE_MASK) - 1
    publish(publisher, 1, 2)
    first, second = receive(subscriber, 2)
    assert (int(first["sequence"]), int(second["sequence"])) == (SEQUENCE_MASK, 1)
    assert subscriber.holds(first)
    assert subscriber.holds(second)
    publisher.begin(2)
    assert not subscriber.holds(second)
