"""`std_preview` ends within 2 s, whatever its clients do."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from threading import Event, Thread

import numpy as np
import pytest
import zmq
from support.processes.deployment import Deployment, wait_until
from support.processes.machine import assert_within

from stddaq.config import DetectorConfig
from stddaq.dataplane.image_publisher import ImagePublisher
from stddaq.preview.service import NICENESS
from stddaq.wire.preview_requests import Still, View, topic

END_S = 2.0
SIDE = 1024


def address(deployment: Deployment) -> str:
    return f"{deployment.ipc_directory}/{deployment.detector_name}-preview"


@contextmanager
def client(deployment: Deployment, kind: int = zmq.SUB) -> Iterator[zmq.Socket]:
    with zmq.Context() as context, context.socket(kind) as connected:
        connected.linger, connected.rcvhwm = 0, 1
        connected.connect(f"ipc://{address(deployment)}")
        yield connected


# Whether the clients have gone on since the last call.
Progress = Callable[[], bool]


@contextmanager
def twenty_that_do_not_read(deployment: Deployment) -> Iterator[Progress]:
    with ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(client(deployment)).subscribe(topic(View()))
        yield lambda: True


@contextmanager
def twenty_without_a_handshake(deployment: Deployment) -> Iterator[Progress]:
    with ExitStack() as stack, client(deployment) as reader:
        reader.subscribe(topic(View()))
        for number in range(20):
            half_open = stack.enter_context(socket.socket(socket.AF_UNIX))
            half_open.connect(address(deployment))
            half_open.send(b"\xff"[: number % 2])
        yield lambda: True


@contextmanager
def requests_without_end(deployment: Deployment) -> Iterator[Progress]:
    ended, has_sent = Event(), Event()

    def request() -> None:
        with client(deployment, zmq.XSUB) as requesting:
            requesting.sndtimeo = 100
            number = 0
            while not ended.is_set():
                number += 1
                if number % 100 == 0:
                    has_sent.set()
                try:
                    requesting.send(b"\1" + topic(View()))
                    requesting.send(b"\1" + topic(Still(number, 1, "pixels")))
                    requesting.send(b"\0" + topic(Still(number, 1, "pixels")))
                except zmq.Again:
                    continue

    thread = Thread(target=request)
    thread.start()

    def progress() -> bool:
        has_sent.clear()
        return has_sent.wait(60)

    try:
        yield progress
    finally:
        ended.set()
        thread.join()


@pytest.mark.parametrize(
    "clients", [twenty_that_do_not_read, twenty_without_a_handshake, requests_without_end]
)
def test_it_ends_within_2_s(make_deployment: Callable[..., Deployment], clients: Callable) -> None:
    deployment = make_deployment(image_pixel_height=SIDE, image_pixel_width=SIDE)
    with ImagePublisher(DetectorConfig.parse(deployment.config)) as publisher:
        service = deployment.start("std_preview", "--hz", 100)
        with clients(deployment) as progress:
            if clients is not requests_without_end:  # These keep libzmq in one call.
                wait_until(publisher.count_subscribers, 20)
            pixels = np.random.default_rng(1).integers(0, 65536, (SIDE, SIDE), np.uint16)
            for image_id in range(20):
                publisher.publish(image_id, pixels)
                assert progress()
            begin = time.monotonic()
            assert service.end() == 0
            assert_within(time.monotonic() - begin, END_S, NICENESS)


def test_messages_that_are_no_requests_are_ignored(deployment: Deployment) -> None:
    with ImagePublisher(DetectorConfig.parse(deployment.config)) as publisher:
        deployment.start("std_preview", "--hz", 100)
        with client(deployment, zmq.XSUB) as requesting:
            for message in (b"", b"\7", b"\1view\n", b"\1" + bytes(10_000), b"\1\xff\n"):
                requesting.send(message)
            requesting.send(b"\1" + topic(View()))
            wait_until(publisher.count_subscribers, 20)
