"""Both ends of a live stream: bytes sent to its port, and messages sent to its client."""

from __future__ import annotations

import itertools
import json
import socket
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import Any

import numpy as np
import zmq
from hypothesis import given
from hypothesis import strategies as st
from support.processes.deployment import Deployment, wait_until
from support.processes.live_streams import start_live_stream, streamed_pixels, subscribed
from support.tools.fuzzing import (
    JSON_VALUES,
    U64,
    ZMTP_CONVERSATIONS,
    Health,
    bsread_messages,
    deeply_nested,
    examples,
    mutated,
)

from stddaq.client import LiveImage, LiveStreamClient
from stddaq.config import DetectorConfig
from stddaq.dataplane.image_publisher import ImagePublisher
from stddaq.streaming.viewers import MAX_VIEWERS
from stddaq.wire import array10
from stddaq.wire.bsread import Channel, MessageEncoder, encode_value

SHAPE = (4, 6)
PIXELS = np.arange(24, dtype="<u2").reshape(SHAPE)


def test_arbitrary_bytes_at_the_port_of_a_live_stream_do_not_disturb_its_viewers(
    deployment: Deployment,
) -> None:
    stream = start_live_stream(deployment)
    host, port = "127.0.0.1", int(stream.address.rpartition(":")[2])
    with ImagePublisher(DetectorConfig.parse(deployment.config)) as publisher, ExitStack() as opened:
        assert publisher.wait_for_subscribers(1, 60)
        viewer = opened.enter_context(subscribed(stream))
        other_peers: list[socket.socket] = []
        image_ids = iter(range(10**6))

        def check_viewer() -> None:
            image_id = next(image_ids)
            publisher.publish(image_id, streamed_pixels(deployment, image_id))
            assert viewer.receive_ids(1) == [image_id]

        check_viewer()
        health = Health([stream.process])

        @examples(50)
        @given(ZMTP_CONVERSATIONS, st.booleans())
        def bytes_are_survived(content: bytes, stays: bool) -> None:
            other_peer = opened.enter_context(socket.create_connection((host, port), timeout=60))
            with suppress(OSError):
                other_peer.sendall(content)
            other_peers.append(other_peer)
            # Some leave at once, some stay without reading; so that others are admitted, not for ever.
            if not stays or len(other_peers) >= MAX_VIEWERS // 2:
                while other_peers:
                    other_peers.pop().close()
            check_viewer()
            health.check()

        bytes_are_survived()
    assert stream.process.end() == 0


def bsread_message(compression: Any = "none") -> list[bytes]:
    channel = Channel.of_image("CAM", SHAPE, PIXELS.dtype, compression)
    parts = MessageEncoder([channel]).message(7, 1000, 5, [encode_value(channel, PIXELS)])
    return [bytes(part) for part in parts]


@st.composite
def array10_messages(draw: st.DrawFn) -> list[bytes]:
    """Generate almost valid messages: arbitrary header values, too few bytes, too many parts."""
    header: dict[str, Any] = json.loads(array10.HeaderMaker(SHAPE, PIXELS.dtype.name).header(7))
    for _ in range(draw(st.integers(0, 2))):
        key = draw(st.sampled_from([*header, "status"]))
        header[key] = draw(JSON_VALUES | U64 | st.just([2**31, 2**31]))
    parts = [json.dumps(header).encode(), PIXELS.tobytes()]
    match draw(st.sampled_from(["as it is", "header", "pixels", "more", "nested"])):
        case "header":
            parts[0] = draw(mutated(st.just(parts[0])))
        case "pixels":
            parts[1] = draw(mutated(st.just(parts[1])))
        case "more":
            parts += draw(st.lists(st.binary(max_size=5), min_size=1))
        case "nested":
            parts[0] = deeply_nested(draw(st.sampled_from([900, 990, 100_000]))).encode()
        case _:
            pass
    return parts


@st.composite
def bsread_headers(draw: st.DrawFn) -> list[bytes]:
    return draw(bsread_messages(bsread_message(draw(st.sampled_from(["none", "lz4", "bitshuffle_lz4"])))))


def test_client_of_a_live_stream_yields_images_and_counts_malformed_messages() -> None:
    marker_ids = itertools.count(2**40)
    with zmq.Context() as context, context.socket(zmq.XPUB) as stream:
        stream.bind("tcp://127.0.0.1:0")

        def images_up_to_a_marker() -> list[LiveImage]:
            marker_id = next(marker_ids)
            header = array10.HeaderMaker(SHAPE, PIXELS.dtype.name).header(marker_id)
            stream.send_multipart([header, PIXELS.tobytes()])
            images = [client.receive(60)]
            while images[-1].image_id != marker_id:
                images.append(client.receive(60))
            np.testing.assert_array_equal(images[-1].pixels, PIXELS)
            return images[:-1]

        with LiveStreamClient(stream.getsockopt_string(zmq.LAST_ENDPOINT)) as client:
            wait_until(lambda: stream.poll(0), what="the subscription")

            @examples(150)
            @given(array10_messages() | bsread_headers())
            def received_or_counted(parts: Sequence[bytes]) -> None:
                images_up_to_a_marker()  # Read the rest of an example that failed.
                n_malformed = client.n_malformed
                stream.send_multipart([*parts])
                images = images_up_to_a_marker()
                assert len(images) + client.n_malformed - n_malformed == 1
                for image in images:
                    assert image.pixels.ndim == 2
                    assert image.pixels.nbytes < 2**20
                    assert isinstance(image.status, str | None)
                    assert isinstance(image.name, str | None)
                    assert isinstance(image.timestamp_ns, int | None)

            received_or_counted()
