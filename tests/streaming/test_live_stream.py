"""`std_live_stream` as a process: images for viewers, and the effect of viewers on it."""

from __future__ import annotations

import json
import re
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
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
    LiveStreamService,
    Subscriber,
    ids_got,
    start_live_stream,
    start_viewer,
    streamed_pixels,
    subscribed,
)

from stddaq.config import DetectorConfig
from stddaq.dataplane.image_publisher import ImagePublisher
from stddaq.dataplane.metadata import COMPRESSION_OF_SUFFIX, MISSING_PACKETS
from stddaq.dataplane.metadata_publisher import MetadataPublisher
from stddaq.wire import array10
from stddaq.wire.compression import compress_bitshuffle_lz4

MakeSource = Callable[[str], Callable[[], Any]]

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:bsread")


@pytest.fixture
def publisher(deployment: Deployment) -> Iterator[ImagePublisher]:
    with ImagePublisher(DetectorConfig.parse(deployment.config)) as publisher:
        yield publisher


def publish(publisher: ImagePublisher, deployment: Deployment, ids: range, **options: Any) -> None:
    for image_id in ids:
        publisher.publish(image_id, streamed_pixels(deployment, image_id), **options)


def started(
    deployment: Deployment, publisher: ImagePublisher, *args: object, **options: Any
) -> LiveStreamService:
    """Start a live stream. Return it when it receives every published image."""
    n_before = publisher.count_subscribers()
    stream = start_live_stream(deployment, *args, **options)
    assert publisher.wait_for_subscribers(n_before + 1, 5)
    return stream


def test_subscriber_receives_every_image_with_the_specified_header(
    deployment: Deployment, publisher: ImagePublisher
) -> None:
    stream = started(deployment, publisher)
    with subscribed(stream) as subscriber:
        publish(publisher, deployment, range(3, 60))
        for image_id in range(3, 60):
            header, pixels = subscriber.receive()
            expected = '{"htype":"array-1.0", "shape":[32,48], "type":"uint16", "frame":%d}'
            assert header == (expected % image_id).encode()
            assert pixels == streamed_pixels(deployment, image_id).tobytes()
    stream.wait_for(
        processed_times=57, n_sent_images=57, n_viewer_drops=0, n_overwritten_images=0, n_skipped_ids=0
    )


def test_statistics_line_has_the_specified_pairs_first(
    deployment: Deployment, publisher: ImagePublisher
) -> None:
    stream = started(deployment, publisher)
    port = stream.address.rpartition(":")[2]
    name = re.escape(deployment.detector_name)
    stream.process.wait_for_line(
        rf"detector={name},port={port},type=array10,source=image,"
        rf"processed_times=0,repetition_rate_hz=0\.00,n_subscribers=0,.* \d+$"
    )


def test_skipped_ids_and_dropped_messages_have_separate_counters(
    deployment: Deployment,
) -> None:
    with FakeStage(deployment, "image") as source:
        stream = start_live_stream(deployment)
        assert source.stream.wait_for_subscribers(1, 5)
        pixels = streamed_pixels(deployment, 1).tobytes()
        # Sequence numbers of the ring, with a gap of two.
        source.publish(5, pixels)
        source.publish(8, pixels)
        source.publish(1, pixels)
        source.publish(2, pixels, number=2**62)
        source.publish(3, pixels, number=2**62 + 3)
        source.publish(4, pixels, height=99)
        source.stream.socket.send(b"\xff\xff")
        stream.wait_for(n_skipped_ids=2, n_malformed=2, processed_times=6)
        assert stream.statistics()["n_dropped_messages"] >= 2


def test_no_slot_is_read_without_a_subscriber(deployment: Deployment, publisher: ImagePublisher) -> None:
    stream = started(deployment, publisher)
    stream.process.send(signal.SIGSTOP)
    # By then later images are in the slots of the first hundred.
    publish(publisher, deployment, range(1100))
    stream.process.send(signal.SIGCONT)
    stream.wait_for(processed_times=1100, n_overwritten_images=0, n_sent_images=0)


def test_image_that_was_overwritten_before_it_was_copied_is_counted_and_never_sent(
    deployment: Deployment, publisher: ImagePublisher
) -> None:
    stream = started(deployment, publisher)
    with subscribed(stream, queue=0) as subscriber:
        stream.process.send(signal.SIGSTOP)
        publish(publisher, deployment, range(1100))
        stream.process.send(signal.SIGCONT)
        for image_id in range(100, 1100):
            header, pixels = subscriber.receive()
            assert json.loads(header)["frame"] == image_id
            assert pixels == streamed_pixels(deployment, image_id).tobytes()
    stream.wait_for(processed_times=1100, n_overwritten_images=100, n_sent_images=1000)


def test_slot_that_is_being_written_is_not_sent(deployment: Deployment, publisher: ImagePublisher) -> None:
    stream = started(deployment, publisher)
    with subscribed(stream) as subscriber:
        stream.process.send(signal.SIGSTOP)
        publish(publisher, deployment, range(1, 4))
        publisher.begin(2)[:] = 0  # A later image of that slot is started and never committed.
        stream.process.send(signal.SIGCONT)
        assert subscriber.receive_ids(2) == [1, 3]
    stream.wait_for(n_overwritten_images=1, n_sent_images=2)


def test_a_recreated_cpp_ring_is_never_read_as_the_old_one(deployment: Deployment) -> None:
    with CppSource(deployment.config) as source:
        stream = start_live_stream(deployment)
        source.wait_for_subscriber()
        with subscribed(stream, queue=0) as subscriber:
            for image_id in range(20):
                source.publish(image_id, streamed_pixels(deployment, image_id))
            assert subscriber.receive_ids(20) == list(range(20))
            source.remake_ring()
            # These reuse the first slots. The service trusts none of them until it has the new ring.
            for image_id in range(1000, 1020):
                source.publish(image_id, streamed_pixels(deployment, image_id))
            stream.process.wait_for_line("was removed, attaching to a new one")
            source.publish(2000, streamed_pixels(deployment, 2000))
            last = -1
            while last < 2000:
                header, pixels = subscriber.receive()
                last = json.loads(header)["frame"]
                assert pixels == streamed_pixels(deployment, last).tobytes(), f"image {last}"


def test_images_of_a_source_without_cursor_are_sent_and_suspect_ones_are_not(deployment: Deployment) -> None:
    with CppSource(deployment.config) as source:
        stream = start_live_stream(deployment)
        source.wait_for_subscriber()
        with subscribed(stream, queue=0) as subscriber:
            # The first image shows the service that this source has no cursor.
            source.publish(0, streamed_pixels(deployment, 0))
            assert subscriber.receive_ids(1) == [0]
            for image_id in range(1, 20):
                source.publish(image_id, streamed_pixels(deployment, image_id))
            for image_id in range(1, 20):
                header, pixels = subscriber.receive()
                assert json.loads(header)["frame"] == image_id
                assert pixels == streamed_pixels(deployment, image_id).tobytes()
            stream.process.send(signal.SIGSTOP)
            for image_id in range(20, 1320):
                source.publish(image_id, streamed_pixels(deployment, image_id))
            stream.process.send(signal.SIGCONT)
            last = -1
            while last < 1319:
                header, pixels = subscriber.receive()
                last = json.loads(header)["frame"]
                # All sent images are good, at the price of some good ones that are not sent.
                assert pixels == streamed_pixels(deployment, last).tobytes()
        wait_until(lambda: stream.statistics().get("n_overwritten_images", 0) >= 300)


def test_filtered_stream_over_the_ring_of_acquired_images(
    deployment: Deployment, publisher: ImagePublisher
) -> None:
    config = DetectorConfig.parse(deployment.config)
    with MetadataPublisher(config, "filter") as passed_on:
        stream = start_live_stream(
            deployment, "--source_suffix_meta", "filter", "--source_suffix_image", "image"
        )
        assert passed_on.wait_for_subscribers(1, 5)
        with subscribed(stream) as subscriber:
            for image_id in range(1, 10):
                sequence = publisher.publish(image_id, streamed_pixels(deployment, image_id))
                if image_id % 3 == 0:
                    message = type(publisher.metadata)()
                    message.CopyFrom(publisher.metadata)
                    message.sequence = sequence
                    passed_on.send(message)
            assert subscriber.receive_ids(3) == [3, 6, 9]
        stream.process.wait_for_line("source=filter,")


def test_damaged_image_is_sent_with_its_status(deployment: Deployment, publisher: ImagePublisher) -> None:
    array10 = started(deployment, publisher)
    bsread = started(deployment, publisher, "-t", "bsread")
    with subscribed(array10) as one, subscribed(bsread) as other:
        publish(publisher, deployment, range(1, 2), status=MISSING_PACKETS)
        publish(publisher, deployment, range(2, 3))
        assert json.loads(one.receive()[0])["status"] == "missing_packets"
        assert "status" not in json.loads(one.receive()[0])
        assert json.loads(other.receive()[0])["status"] == "missing_packets"
        assert "status" not in json.loads(other.receive()[0])


def test_batch_sends_consecutive_ids_of_every_n(deployment: Deployment, publisher: ImagePublisher) -> None:
    stream = started(deployment, publisher, setting={"type": "batch", "config": [2, 7]})
    with subscribed(stream) as subscriber:
        publish(publisher, deployment, range(5, 25))
        assert subscriber.receive_ids(6) == [7, 8, 14, 15, 21, 22]
        assert subscriber.is_quiet()


def test_periodic_sends_groups_of_consecutive_images(
    deployment: Deployment, publisher: ImagePublisher
) -> None:
    stream = started(deployment, publisher, setting={"type": "periodic", "config": [3, 0.01]})
    with subscribed(stream) as subscriber:
        publish(publisher, deployment, range(10, 90))
        assert subscriber.receive_ids(3) == [10, 11, 12]
        assert subscriber.is_quiet()


def test_setting_is_changed_while_running_and_no_subscriber_is_lost(
    deployment: Deployment, publisher: ImagePublisher
) -> None:
    stream = started(deployment, publisher)
    with subscribed(stream) as subscriber:
        publish(publisher, deployment, range(1, 4))
        assert subscriber.receive_ids(3) == [1, 2, 3]
        change(deployment, stream, {"type": "batch", "config": [1, 10]})
        stream.process.wait_for_line(r"\[event\] setting changed to batch 1 10")
        publish(publisher, deployment, range(4, 25))
        assert subscriber.receive_ids(2) == [10, 20]
        change(deployment, stream, FORWARD)
        stream.process.wait_for_line(r"\[event\] setting changed to forward")
        publish(publisher, deployment, range(25, 28))
        assert subscriber.receive_ids(3) == [25, 26, 27]
    assert sum(" subscribed" in line for line in stream.process.stdout) == 1


def test_bad_change_is_reported_once_and_the_current_setting_stays(
    deployment: Deployment, publisher: ImagePublisher
) -> None:
    stream = started(deployment, publisher)
    with subscribed(stream) as subscriber:
        change(deployment, stream, {"type": "batch", "config": [5, 2]})
        stream.process.wait_for_line(r"\[error\] the setting stays forward: .*1 <= Y <= N")
        deployment.config_path.write_text("{")
        stream.process.wait_for_line(r"\[error\] the setting stays forward: .*is not JSON")
        deployment.write_config(live_stream_configs={})
        stream.process.wait_for_line(r"\[error\] the setting stays forward: .*expected one of its addresses")
        publish(publisher, deployment, range(1, 4))
        assert subscriber.receive_ids(3) == [1, 2, 3]
    n_lines = len(stream.process.stdout)
    stream.process.wait_for_line(",port=", start=n_lines)
    assert sum("the setting stays" in line for line in stream.process.stdout) == 3


def change(deployment: Deployment, stream: LiveStreamService, setting: object) -> None:
    configs = deployment.config["live_stream_configs"]
    deployment.write_config(live_stream_configs=configs | {stream.address: setting})


def test_stopped_viewer_does_not_disturb_others_and_its_drops_are_counted(
    make_deployment: Callable[..., Deployment], tmp_path: Path
) -> None:
    deployment = make_deployment(image_pixel_height=1024, image_pixel_width=1024, ram_buffer_gb=1)
    config = DetectorConfig.parse(deployment.config)
    n_images = 100
    with ImagePublisher(config) as publisher:
        stream = started(deployment, publisher)
        with subscribed(stream) as good:
            stopped = start_viewer(deployment, stream, tmp_path / "slow")
            publisher.publish(0, streamed_pixels(deployment, 0))
            assert good.receive_ids(1) == [0]
            stopped.wait_for_line("got 0")
            stopped.send(signal.SIGSTOP)
            for image_id in range(1, n_images):
                publisher.publish(image_id, streamed_pixels(deployment, image_id))
                assert good.receive_ids(1) == [image_id]
            wait_until(lambda: stream.statistics().get("n_viewer_drops", 0) > 0)
            assert stream.statistics()["n_overwritten_images"] == 0
            stopped.send(signal.SIGCONT)
            # Every image is either received in the end or was dropped.
            wait_until(
                lambda: len(ids_got(stopped)) + stream.statistics()["n_viewer_drops"] == n_images,
                20,
            )
            stopped.kill()
        assert stream.process.end() == 0


def test_other_peers_do_not_disturb_viewers(deployment: Deployment, publisher: ImagePublisher) -> None:
    stream = started(deployment, publisher)
    host, port = "127.0.0.1", int(stream.address.rpartition(":")[2])
    with subscribed(stream) as subscriber, socket.create_connection((host, port)) as silent:
        with socket.create_connection((host, port)) as browser:
            browser.sendall(b"GET / HTTP/1.1\r\n\r\n")
            stream.process.wait_for_line("is not a ZMTP subscriber: first byte: expected 0xff .*, got 0x47")
        with socket.create_connection((host, port)) as probe:
            probe_port = probe.getsockname()[1]
        with zmq.Context() as context, context.socket(zmq.PULL) as pull:
            pull.linger = 0
            pull.connect(stream.address)
            # libzmq closes the connection when it receives the socket type.
            wait_until(lambda: any(" disconnected" in line for line in stream.process.stdout))
        publish(publisher, deployment, range(1, 4))
        assert subscriber.receive_ids(3) == [1, 2, 3]
        assert silent.recv(100)[:1] == b"\xff"
    # A connection that sends nothing is not logged.
    assert f":{probe_port} " not in stream.process.output


def test_subscriber_that_reconnects_is_served_again(
    deployment: Deployment, publisher: ImagePublisher
) -> None:
    stream = started(deployment, publisher)
    for round_ in range(3):
        with subscribed(stream) as subscriber:
            publish(publisher, deployment, range(10 * round_, 10 * round_ + 3))
            assert subscriber.receive_ids(3) == [10 * round_ + i for i in range(3)]


def test_subscriber_of_a_topic_receives_messages_with_that_prefix(
    deployment: Deployment, publisher: ImagePublisher
) -> None:
    stream = started(deployment, publisher)
    with subscribed(stream, topic=b"something else") as other, subscribed(stream, topic=b'{"htype"') as one:
        publish(publisher, deployment, range(1, 3))
        assert one.receive_ids(2) == [1, 2]
        assert other.is_quiet()


@pytest.fixture
def bsread_source() -> Iterator[MakeSource]:
    """Return a function that makes psi-bsread's client for an address; calling it returns a message."""
    made: list[Source] = []

    def make(address: str) -> Callable[[], Any]:
        host, _, port = address.removeprefix("tcp://").rpartition(":")
        source = Source(host=host, port=int(port), mode=zmq.SUB, receive_timeout=10_000)
        made.append(source)
        source.connect()

        def receive() -> Any:
            message = source.receive()
            assert message is not None, "no message within 10 s"
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


def test_compressed_image_is_sent_as_bsread_byte_for_byte(
    deployment: Deployment, bsread_source: MakeSource
) -> None:
    with FakeStage(deployment, "h5bitshuffle-lz4") as output:
        stream = start_live_stream(deployment, "-s", "h5bitshuffle-lz4", "-t", "bsread")
        assert output.stream.wait_for_subscribers(1, 5)
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
        assert publisher.wait_for_subscribers(1, 5)
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
        assert output.stream.wait_for_subscribers(1, 5)
        with subscribed(stream) as subscriber:
            output.publish(1, b"no blob")
            output.publish(2, bytes(compress_bitshuffle_lz4(streamed_pixels(deployment, 2))))
            assert subscriber.receive_ids(1) == [2]
        stream.wait_for(n_failed_images=1, n_sent_images=1)


def test_service_with_subscribers_ends_with_0_and_leaves_nothing_behind(
    deployment: Deployment, publisher: ImagePublisher
) -> None:
    stream = started(deployment, publisher)
    with subscribed(stream):
        publish(publisher, deployment, range(3))
        assert stream.process.end(signal.SIGINT, timeout=5) == 0
    assert stream.process.stderr == []


def test_restarted_service_regains_its_address_and_its_subscribers(
    deployment: Deployment, publisher: ImagePublisher
) -> None:
    stream = started(deployment, publisher)
    with subscribed(stream) as subscriber:
        stream.process.end()
        wait_until(lambda: publisher.count_subscribers() == 0)
        again = deployment.start("std_live_stream", stream.address)
        # libzmq subscribes again when the program polls for messages.
        wait_until(lambda: subscriber.is_quiet(0.01) and any(" subscribed" in line for line in again.stdout))
        assert publisher.wait_for_subscribers(1, 5)
        publish(publisher, deployment, range(1, 3))
        assert subscriber.receive_ids(2) == [1, 2]
