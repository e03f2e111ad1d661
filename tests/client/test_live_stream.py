"""The clients of live streams, with the service of stddaq and with plain publishers."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator

import numpy as np
import pytest
import zmq
from bsread.sender import Sender
from support.peers.cpp_services import CppSource
from support.processes.deployment import Deployment, free_port, wait_until
from support.processes.live_streams import start_live_stream, streamed_pixels

from stddaq.client import (
    AsyncLiveStreamClient,
    LiveImage,
    LiveStreamClient,
    LiveStreamError,
    LiveStreamTimeoutError,
    live_stream,
)
from stddaq.config import DetectorConfig
from stddaq.dataplane.image_publisher import ImagePublisher
from stddaq.wire.array10 import HeaderMaker
from stddaq.wire.bsread import Channel, MessageEncoder, encode_value

PIXELS = np.arange(12, dtype="<u2").reshape(3, 4)
TYPES = ("array-1.0", "bsread")


class Publisher:
    """A plain publisher that can wait for a subscriber."""

    def __init__(self) -> None:
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.XPUB)
        self.socket.sndhwm = 0
        self.address = f"tcp://127.0.0.1:{self.socket.bind_to_random_port('tcp://127.0.0.1')}"

    def wait_for_subscriber(self) -> None:
        assert self.socket.poll(60_000), "no subscriber"
        self.socket.recv()

    def send_array(self, image_id: int, pixels: np.ndarray = PIXELS) -> None:
        height, width = pixels.shape
        header = HeaderMaker((height, width), pixels.dtype.name).header(image_id)
        self.socket.send_multipart([header, pixels.tobytes()])


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    publisher = Publisher()
    yield publisher
    publisher.context.destroy(linger=0)


@pytest.mark.parametrize("stream_type", TYPES)
def test_client_yields_the_images_of_the_service_with_their_ids(
    deployment: Deployment, stream_type: str
) -> None:
    with ImagePublisher(DetectorConfig.parse(deployment.config)) as source:
        stream = start_live_stream(deployment, "-t", stream_type)
        assert source.wait_for_subscribers(1, 60)
        with LiveStreamClient(stream.address) as client:
            stream.process.wait_for_line(" subscribed")
            source.metadata.gf.frame_timestamp = 1_700_000_000_123_456_789
            for image_id in (3, 4, 8):
                source.publish(
                    image_id, streamed_pixels(deployment, image_id), status=2 if image_id == 4 else 1
                )
            for image_id, image in zip((3, 4, 8), client, strict=False):
                assert image.image_id == image_id
                assert image.protocol == stream_type
                assert image.status == ("missing_packets" if image_id == 4 else None)
                np.testing.assert_array_equal(image.pixels, streamed_pixels(deployment, image_id))
                if stream_type == "bsread":
                    assert image.timestamp_ns == 1_700_000_000_123_456_789
                    assert image.name == deployment.detector_name
            assert (client.n_received, client.n_skipped, client.n_dropped) == (3, 3, 0)


@pytest.mark.parametrize("stream_type", TYPES)
def test_asyncio_client_yields_the_same(deployment: Deployment, stream_type: str) -> None:
    async def receive(address: str, source: ImagePublisher) -> list[int]:
        ids = []
        async with AsyncLiveStreamClient(address) as client:
            await asyncio.to_thread(stream.process.wait_for_line, " subscribed")
            for image_id in range(5):
                source.publish(image_id, streamed_pixels(deployment, image_id))
            async for image in client:
                np.testing.assert_array_equal(image.pixels, streamed_pixels(deployment, image.image_id))
                ids.append(image.image_id)
                if len(ids) == 5:
                    return ids
        return ids

    with ImagePublisher(DetectorConfig.parse(deployment.config)) as source:
        stream = start_live_stream(deployment, "-t", stream_type)
        assert source.wait_for_subscribers(1, 60)
        assert asyncio.run(receive(stream.address, source)) == [0, 1, 2, 3, 4]


def test_timeout_says_whether_a_service_answers(publisher: Publisher) -> None:
    with (
        LiveStreamClient(f"tcp://127.0.0.1:{free_port()}") as client,
        pytest.raises(LiveStreamTimeoutError, match="got no connection"),
    ):
        client.receive(timeout=0.1)
    with LiveStreamClient(publisher.address) as client:
        wait_until(lambda: client.is_connected)
        with pytest.raises(LiveStreamTimeoutError, match="got none over the connection"):
            client.receive(timeout=0.1)
        publisher.wait_for_subscriber()
        publisher.send_array(1)
        assert client.receive(timeout=60).image_id == 1


def test_asyncio_timeout_says_so_and_leaves_the_client_usable(publisher: Publisher) -> None:
    async def receive() -> int:
        async with AsyncLiveStreamClient(publisher.address) as client:
            with pytest.raises(LiveStreamTimeoutError):
                await client.receive(timeout=0.1)
            await asyncio.to_thread(publisher.wait_for_subscriber)
            publisher.send_array(7)
            return (await client.receive(timeout=60)).image_id

    assert asyncio.run(receive()) == 7


def test_a_malformed_address_is_refused_with_what_is_allowed() -> None:
    for address in ("nonsense", "http://127.0.0.1:1", "tcp://127.0.0.1"):
        with pytest.raises(LiveStreamError, match=rf"expected tcp://HOST:PORT, got '{address}'"):
            LiveStreamClient(address).connect()


def test_client_that_is_not_connected_says_so() -> None:
    with pytest.raises(LiveStreamError, match="not connected"):
        LiveStreamClient("tcp://127.0.0.1:1").receive(timeout=1)


@pytest.mark.parametrize("status", [{}, 7, ["x"], None])
def test_a_third_party_status_that_is_not_text_is_left_out(publisher: Publisher, status: object) -> None:
    """Any value of the field became the status of the image."""
    channel = Channel.of_image("camera", (3, 4), PIXELS.dtype, "none")
    main, *rest = MessageEncoder([channel]).message(7, 1, 2, [encode_value(channel, PIXELS)])
    header = json.dumps(json.loads(bytes(main)) | {"status": status}).encode()
    with LiveStreamClient(publisher.address) as client:
        publisher.wait_for_subscriber()
        publisher.socket.send_multipart([header, *rest])
        image = client.receive(timeout=60)
    assert (image.image_id, image.status) == (7, None)
    np.testing.assert_array_equal(image.pixels, PIXELS)


@pytest.mark.parametrize("stream_type", TYPES)
def test_images_whose_cpp_source_sets_no_status_are_good(deployment: Deployment, stream_type: str) -> None:
    with CppSource(deployment.config) as source:
        stream = start_live_stream(deployment, "-t", stream_type)
        source.wait_for_subscriber()
        with LiveStreamClient(stream.address) as client:
            stream.process.wait_for_line(" subscribed")
            for image_id, status in ((3, 0), (4, 1), (5, 2)):
                source.publish(image_id, streamed_pixels(deployment, image_id), status=status)
            images = [client.receive(timeout=60) for _ in range(3)]
    assert [image.status for image in images] == [None, None, "missing_packets"]
    for image in images:
        np.testing.assert_array_equal(image.pixels, streamed_pixels(deployment, image.image_id))


@pytest.mark.parametrize("compression", [None, "bitshuffle_lz4"])
def test_a_channel_without_a_name_is_received_from_psi_bsread(compression: str | None) -> None:
    """C++ live streams name the channels of all detectors except pco so."""
    port = free_port()
    sender = Sender(
        address="tcp://127.0.0.1", port=port, mode=zmq.PUB, block=False, data_compression=compression
    )
    sender.add_channel_from_value("", PIXELS)
    sender.open()
    try:
        with LiveStreamClient(f"tcp://127.0.0.1:{port}") as client:

            def receive() -> LiveImage | None:
                sender.send(PIXELS, pulse_id=7, timestamp=(1_700_000_000, 123))
                try:
                    return client.receive(timeout=0.05)
                except LiveStreamTimeoutError:
                    return None

            image = wait_until(receive, what="an image")
            assert client.n_malformed == 0
    finally:
        sender.close()
    assert (image.image_id, image.name, image.status) == (7, "", None)
    assert image.timestamp_ns == 1_700_000_000_000_000_123
    np.testing.assert_array_equal(image.pixels, PIXELS)


@pytest.mark.slow
def test_messages_without_an_image_are_counted_and_left_out(publisher: Publisher) -> None:
    channel = Channel.of_image("camera", (3, 4), PIXELS.dtype, "bitshuffle_lz4")
    good = MessageEncoder([channel]).message(5, 1, 2, [encode_value(channel, PIXELS)])
    with LiveStreamClient(publisher.address) as client:
        publisher.wait_for_subscriber()
        for bad in (
            [b"hello"],
            [b"{}", b""],
            [b'{"htype":"array-1.0"}', b""],
            [b'{"htype":["array-1.0"]}', b""],
            [good[0], bytes(good[1]) + b" ", *good[2:]],
            [*good[:2], b"no blob", good[3]],
            [*good[:2], b"", b""],
        ):
            publisher.socket.send_multipart(bad)
        with pytest.raises(LiveStreamTimeoutError, match="got a message without one"):
            client.receive(timeout=2.0)
        publisher.socket.send_multipart(good)
        image = client.receive(timeout=60)
        assert client.n_malformed == 7
    np.testing.assert_array_equal(image.pixels, PIXELS)
    assert (image.image_id, image.timestamp_ns, image.name) == (5, 1_000_000_002, "camera")


def test_first_of_several_channels_with_an_image_is_used(publisher: Publisher) -> None:
    channels = [
        Channel(name="scalar"),
        Channel.of_image("empty", (3, 4), PIXELS.dtype),
        Channel.of_image("camera", (3, 4), PIXELS.dtype),
    ]
    message = MessageEncoder(channels).message(
        5, 1, 2, [np.float64(1).tobytes(), None, encode_value(channels[2], PIXELS)]
    )
    with LiveStreamClient(publisher.address) as client:
        publisher.wait_for_subscriber()
        publisher.socket.send_multipart(message)
        assert client.receive(timeout=60).name == "camera"


def test_slow_user_gets_the_newest_images_and_the_count_of_the_others(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = PIXELS.nbytes + len(HeaderMaker((3, 4), PIXELS.dtype.name).header(100))
    monkeypatch.setattr(live_stream, "MAX_WAITING_BYTES", 10 * size)
    with LiveStreamClient(publisher.address) as client:
        publisher.wait_for_subscriber()
        for image_id in range(100, 200):
            publisher.send_array(image_id)
        wait_until(lambda: client.n_dropped == 90)
        assert [client.receive(timeout=60).image_id for _ in range(10)] == list(range(190, 200))
        assert client.n_received == 10


def test_a_restart_of_ids_is_not_a_gap(publisher: Publisher) -> None:
    with LiveStreamClient(publisher.address) as client:
        publisher.wait_for_subscriber()
        for image_id in (5, 7, 0, 1):
            publisher.send_array(image_id)
        assert [client.receive(timeout=60).image_id for _ in range(4)] == [5, 7, 0, 1]
        assert client.n_skipped == 1


def test_asyncio_client_does_not_block_the_loop(publisher: Publisher) -> None:
    async def longest_pause() -> float:
        longest, before = 0.0, time.monotonic()
        async with AsyncLiveStreamClient(publisher.address) as client:
            waiting = asyncio.create_task(client.receive())
            for _ in range(20):
                await asyncio.sleep(0.005)
                now = time.monotonic()
                longest, before = max(longest, now - before), now
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        return longest

    # A wait in the loop would be endless; the delay of a loaded machine is not.
    assert asyncio.run(asyncio.wait_for(longest_pause(), 20)) < 10


def test_address_of_every_interface_is_that_of_this_host(publisher: Publisher) -> None:
    port = publisher.address.rpartition(":")[2]
    with LiveStreamClient(f"tcp://*:{port}") as client:
        publisher.wait_for_subscriber()
        publisher.send_array(1)
        assert client.receive(timeout=60).image_id == 1
