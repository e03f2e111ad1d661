"""What viewers decode: PSI's bsread, compressed images, headers of C++ sources."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

import bitshuffle
import numpy as np
import pytest
import zmq
from bsread import Source
from support.peers import c_blosc2
from support.peers.cpp_services import CppSource
from support.processes.deployment import Deployment, wait_until
from support.processes.live_streams import (
    FORWARD,
    FakeStage,
    Subscriber,
    start_live_stream,
    started,
    streamed_pixels,
    subscribed,
)

from stddaq.config import DetectorConfig
from stddaq.dataplane.image_publisher import ImagePublisher
from stddaq.dataplane.metadata import COMPRESSION_OF_SUFFIX
from stddaq.wire import array10
from stddaq.wire.compression import compress_bitshuffle_lz4

MakeSource = Callable[..., Callable[[], Any]]


pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:bsread")


@pytest.fixture
def bsread_source() -> Iterator[MakeSource]:
    """Return a function that makes psi-bsread's client for an address; calling it returns a message."""
    made: list[Source] = []

    def make(address: str, mode: int = zmq.SUB) -> Callable[[], Any]:
        host, _, port = address.removeprefix("tcp://").rpartition(":")
        source = Source(host=host, port=int(port), mode=mode, receive_timeout=60_000)
        made.append(source)
        source.connect()

        def receive() -> Any:
            message = source.receive()
            assert message is not None, "no message within 60 s"
            return message.data

        return receive

    yield make
    for source in made:
        source.disconnect()


@pytest.mark.parametrize("detector", ["gigafrost", "pco", "eiger", "jungfrau-converted"])
def test_psi_bsread_decodes_the_stream(
    make_deployment: Callable[..., Deployment], bsread_source: MakeSource, detector: str
) -> None:
    deployment = make_deployment(detector_type=detector, image_pixel_height=33, image_pixel_width=47)
    began = time.time()
    with ImagePublisher(DetectorConfig.parse(deployment.config)) as publisher:
        stream = started(deployment, publisher, "-t", "bsread")
        source = bsread_source(stream.address)
        stream.process.wait_for_line(" subscribed")
        name = deployment.detector_name
        if detector == "pco":
            name = "SAROP11-PCO:FPICTURE"
            publisher.metadata.pco.global_timestamp_sec = 1_700_000_000
            publisher.metadata.pco.global_timestamp_ns = 123_456_789
            publisher.metadata.pco.bsread_name = name
        elif detector == "gigafrost":
            publisher.metadata.gf.frame_timestamp = 1_700_000_000_123_456_789
        for image_id in (7, 9):
            publisher.publish(image_id, streamed_pixels(deployment, image_id))
            message = source()
            assert message.pulse_id == image_id
            value = message.data[name]
            expected = streamed_pixels(deployment, image_id)
            assert (value.value.dtype, value.value.shape) == (expected.dtype, expected.shape)
            np.testing.assert_array_equal(value.value, expected)
            if detector in ("pco", "gigafrost"):
                assert (value.timestamp, value.timestamp_offset) == (1_700_000_000, 123_456_789)
                assert message.global_timestamp == 1_700_000_000
            else:
                assert began - 1 <= value.timestamp <= time.time()


def test_psi_bsread_pulls_the_channel_that_the_setting_names(
    deployment: Deployment, publisher: ImagePublisher, bsread_source: MakeSource
) -> None:
    """cam_server looks for `<device>:FPICTURE`; receivers that pull need a socket that pushes."""
    setting = FORWARD | {"socket": "push", "channel": "GF2:FPICTURE"}
    stream = started(deployment, publisher, "-t", "bsread", setting=setting)
    source = bsread_source(stream.address, zmq.PULL)
    stream.process.wait_for_line(" connected")
    for image_id in (7, 9):
        publisher.publish(image_id, streamed_pixels(deployment, image_id))
        message = source()
        assert message.pulse_id == image_id
        assert list(message.data) == ["GF2:FPICTURE"]
        np.testing.assert_array_equal(
            message.data["GF2:FPICTURE"].value, streamed_pixels(deployment, image_id)
        )


def test_compressed_image_is_sent_as_bsread_byte_for_byte(
    deployment: Deployment, bsread_source: MakeSource
) -> None:
    with FakeStage(deployment, "h5bitshuffle-lz4") as output:
        stream = start_live_stream(deployment, "-s", "h5bitshuffle-lz4", "-t", "bsread")
        assert output.stream.wait_for_subscribers(1, 60)
        source = bsread_source(stream.address)
        stream.process.wait_for_line(" subscribed")
        with subscribed(stream) as subscriber:
            pixels = streamed_pixels(deployment, 5)
            # An unusual block size would reveal that the blob was compressed again.
            blob = bytes(compress_bitshuffle_lz4(pixels, block_bytes=512))
            output.publish(5, blob)
            parts = subscriber.receive()
            assert parts[2] == blob
            decoded = bitshuffle.decompress_lz4(
                np.frombuffer(parts[2][12:], np.uint8), pixels.shape, pixels.dtype, 256
            )
            np.testing.assert_array_equal(decoded, pixels)
        message = source()
        np.testing.assert_array_equal(message.data[deployment.detector_name].value, pixels)


@pytest.mark.parametrize("suffix", ["h5bitshuffle-lz4", "blosc2"])
@pytest.mark.parametrize("stream_type", ["array-1.0", "bsread"])
def test_stream_of_a_compressor_decodes_to_the_images_of_the_source(
    make_deployment: Callable[..., Deployment],
    bsread_source: MakeSource,
    suffix: str,
    stream_type: str,
) -> None:
    deployment = make_deployment(image_pixel_height=64, image_pixel_width=96)
    with ImagePublisher(DetectorConfig.parse(deployment.config)) as publisher:
        stream = start_live_stream(deployment, "-s", suffix, "-t", stream_type)
        compressor = f"std_data_compress_{suffix.replace('-', '_')}"
        deployment.start(compressor, "-t", 1)
        assert publisher.wait_for_subscribers(1, 60)
        with subscribed(stream) as subscriber:
            source = bsread_source(stream.address) if stream_type == "bsread" else None
            if source is not None:
                wait_until(lambda: sum(" subscribed" in line for line in stream.process.stdout) == 2)
            noise = np.random.default_rng(1).integers(0, 2**16, (64, 96)).astype("<u2")
            images = [streamed_pixels(deployment, 1), noise, np.zeros((64, 96), "<u2")]
            # The subscription may reach the compressor only after its first images.
            last = 0
            while last < 100 and not subscriber.socket.poll(100):
                last += 1
                publisher.publish(last, images[last % 3])
            for image_id in range(last + 1, last + 4):
                publisher.publish(image_id, images[image_id % 3])
            image_id = 0
            while image_id < last + 3:
                image_id, pixels = received(subscriber, source)
                np.testing.assert_array_equal(pixels, images[image_id % 3])


@pytest.mark.parametrize("stream_type", ["array-1.0", "bsread"])
@pytest.mark.parametrize("suffix", ["h5bitshuffle-lz4", "blosc2"])
def test_stream_of_a_cpp_compressor_decodes_to_the_images_of_the_source(
    deployment: Deployment, bsread_source: MakeSource, suffix: str, stream_type: str
) -> None:
    images = {i: streamed_pixels(deployment, i) for i in range(3)}
    with CppSource(deployment.config, suffix) as compressor:
        stream = start_live_stream(deployment, "-s", suffix, "-t", stream_type)
        compressor.wait_for_subscriber()
        with subscribed(stream) as subscriber:
            source = bsread_source(stream.address) if stream_type == "bsread" else None
            if source is not None:
                wait_until(lambda: sum(" subscribed" in line for line in stream.process.stdout) == 2)
            for image_id, image in images.items():
                # C++ announces the default block of bitshuffle as 0.
                header = struct.pack(">qi", image.nbytes, 0)
                blob = header + bitshuffle.compress_lz4(image).tobytes()
                content = c_blosc2.compress(image) if suffix == "blosc2" else blob
                compressor.publish_compressed(image_id, content, COMPRESSION_OF_SUFFIX[suffix])
            for image_id, image in images.items():
                found, pixels = received(subscriber, source)
                assert found == image_id
                np.testing.assert_array_equal(pixels, image)


def test_header_of_an_image_whose_cpp_source_sets_no_status_is_that_of_cpp(deployment: Deployment) -> None:
    with CppSource(deployment.config) as source:
        stream = start_live_stream(deployment)
        source.wait_for_subscriber()
        with subscribed(stream) as subscriber:
            source.publish(3, streamed_pixels(deployment, 3), status=0)
            header, _pixels = subscriber.receive()
    assert header == b'{"htype":"array-1.0", "shape":[32,48], "type":"uint16", "frame":3}'


def received(subscriber: Subscriber, source: Callable[[], Any] | None) -> tuple[int, np.ndarray]:
    """Return id and pixels of the next image of an array-1.0 subscriber, or of a bsread source if given."""
    if source is None:
        message = array10.decode(subscriber.receive())
        return message.image_id, message.pixels
    message = source()
    (value,) = message.data.values()
    return message.pulse_id, value.value


def test_compressed_image_that_cannot_be_decoded_is_counted_and_not_sent(deployment: Deployment) -> None:
    with FakeStage(deployment, "h5bitshuffle-lz4") as output:
        stream = start_live_stream(deployment, "-s", "h5bitshuffle-lz4")
        assert output.stream.wait_for_subscribers(1, 60)
        with subscribed(stream) as subscriber:
            output.publish(1, b"no blob")
            output.publish(2, bytes(compress_bitshuffle_lz4(streamed_pixels(deployment, 2))))
            assert subscriber.receive_ids(1) == [2]
        stream.wait_for(n_failed_images=1, n_sent_images=1)
