"""`std_live_stream` as a process: images for viewers, and the effect of viewers on it."""

from __future__ import annotations

import json
import re
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zmq
from support.peers.cpp_services import CppSource
from support.processes.deployment import Deployment, wait_until
from support.processes.live_streams import (
    FORWARD,
    FakeStage,
    LiveStreamService,
    ids_got,
    publish,
    start_live_stream,
    start_viewer,
    started,
    streamed_pixels,
    subscribed,
)

from stddaq.config import DetectorConfig
from stddaq.dataplane.image_publisher import ImagePublisher
from stddaq.dataplane.metadata import MISSING_PACKETS
from stddaq.dataplane.metadata_publisher import MetadataPublisher

MakeSource = Callable[[str], Callable[[], Any]]

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:bsread")


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
        assert source.stream.wait_for_subscribers(1, 60)
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
        assert passed_on.wait_for_subscribers(1, 60)
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


def test_scan_index_is_changed_while_running(deployment: Deployment, publisher: ImagePublisher) -> None:
    """RECASTX takes images by it, and sorts them by `frame`."""
    setting = FORWARD | {"header": ["image_attributes"], "frame": "since_scan", "scan_index": 0}
    stream = started(deployment, publisher, setting=setting)
    with subscribed(stream) as subscriber:

        def next_image(image_id: int) -> tuple[int, int, int]:
            publish(publisher, deployment, range(image_id, image_id + 1))
            header = json.loads(subscriber.receive()[0])
            attributes = header["image_attributes"]
            return header["frame"], attributes["scan_index"], attributes["image_number"]

        assert [next_image(10), next_image(12)] == [(0, 0, 10), (2, 0, 12)]
        deployment.write_config(live_stream_configs={stream.address: setting | {"scan_index": 2}})
        stream.process.wait_for_line(r"\[event\] setting changed to forward .*frame=\"since_scan\"")
        assert [next_image(20), next_image(21)] == [(0, 2, 20), (1, 2, 21)]
        deployment.write_config(live_stream_configs={stream.address: setting | {"channel": "X"}})
        stream.process.wait_for_line("channel: expected a stream of type bsread, got array-1.0")
        assert next_image(22) == (2, 2, 22)


@pytest.mark.slow
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


@pytest.mark.slow
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
            stream.process.wait_for_line("is not a ZMTP peer of PUB: first byte: expected 0xff .*, got 0x47")
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


def test_service_with_subscribers_ends_with_0_and_leaves_nothing_behind(
    deployment: Deployment, publisher: ImagePublisher
) -> None:
    stream = started(deployment, publisher)
    with subscribed(stream):
        publish(publisher, deployment, range(3))
        assert stream.process.end(signal.SIGINT) == 0
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
        assert publisher.wait_for_subscribers(1, 60)
        publish(publisher, deployment, range(1, 3))
        assert subscriber.receive_ids(2) == [1, 2]
