"""Forwarding from a source on one server to files on another, with real processes."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
import zmq
from support.peers.cpp_services import CppSource
from support.processes.deployment import Deployment, free_port
from support.processes.machine import assert_within
from support.processes.recording import images_of, pixels_of
from support.processes.servers import (
    MakeServers,
    assert_all_arrive,
    record_through_a_restart,
    wait_for_connections,
)
from support.processes.stream_readers import StreamReader

from stddaq.dataplane.connections import open_socket
from stddaq.dataplane.metadata import GOOD_IMAGE, ImageMetadata
from stddaq.forwarding.messages import MAX_METADATA_BYTES
from stddaq.forwarding.parts import parts_of

# 32 x 48 pixels are 3072 bytes, which 5 does not divide.
FIVE: dict[str, Any] = {"max_number_of_forwarders_spawned": 5, "use_all_forwarders": True}
THREE: dict[str, Any] = {"max_number_of_forwarders_spawned": 3, "use_all_forwarders": True}


@pytest.mark.slow
@pytest.mark.parametrize("pairs", [FIVE, {}], ids=["all", "max"])
def test_a_run_on_the_second_server_holds_every_pixel_of_the_first(
    make_servers: MakeServers, directory: Path, pairs: dict[str, Any]
) -> None:
    servers = make_servers(**pairs)
    servers.start()
    record_through_a_restart(servers, directory)


@pytest.mark.slow
@pytest.mark.parametrize("whole", [False, True])
def test_checksums_of_the_first_server_are_those_on_the_second(
    make_servers: MakeServers, whole: bool
) -> None:
    servers = make_servers(image_checksums=True, sender_sends_full_images=whole, **THREE)
    servers.start()
    images = images_of(range(20))
    with StreamReader(servers.second) as reader:
        servers.publish(images)
        received = reader.receive(20)
    expected = [xxhash.xxh3_64_intdigest(image.pixels.tobytes()) for image in images]
    assert [image.metadata.checksum for image in received] == expected


def test_services_without_a_part_end_in_silence(deployment: Deployment) -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    services = [
        deployment.start(service, address, part, ready=None)
        for service in ("std_stream_send", "std_stream_receive")
        for part in (1, 8, 100)
    ]
    services.append(deployment.start("std_data_sync_metadata", address, ready=None))
    for service in services:
        assert service.wait() == 0
    deployment.write_config(sender_sends_full_images=True)
    services.append(deployment.start("std_data_sync_stream", ready=None))
    for service in services:
        assert service.wait() == 0
        assert service.stdout == service.stderr == []


@pytest.mark.slow
def test_cpp_senders_and_receivers_lose_the_bytes_that_they_leave_out_and_no_others(
    make_servers: MakeServers,
) -> None:
    """A C++ sender, played by the test: no field above 99, and `B // N` bytes of each part."""
    servers = make_servers(**FIVE)
    servers.start_sync()
    with ExitStack() as stack:
        context = stack.enter_context(zmq.Context())
        parts, sockets = parts_of(servers.config), []
        for part in parts:
            socket = stack.enter_context(context.socket(zmq.XPUB))
            socket.linger = 0
            socket.bind(servers.addresses[part.index])
            servers.start_receiver(part.index)
            assert socket.poll(60_000)
            assert socket.recv() == b"\1"
            sockets.append(socket)
        with StreamReader(servers.second) as reader:
            wait_for_connections(list(servers.receivers.values()), "n_senders")
            message = ImageMetadata(height=32, width=48, size=3072, dtype=2, status=1)  # pyright: ignore
            for image_id in (3, 4, 1):
                message.image_id = image_id
                content = pixels_of(image_id).tobytes()
                for part, socket in zip(parts, sockets, strict=True):
                    piece = content[part.offset :][: 3072 // 5]
                    socket.send_multipart([message.SerializeToString(), piece])
            images = reader.receive(3)
    expected = []
    for image_id in (3, 4, 1):
        pixels = np.frombuffer(pixels_of(image_id).tobytes(), np.uint8).copy()
        for part in parts:
            pixels[part.offset + part.cpp_length : part.offset + part.length] = 0
        expected.append((image_id, pixels.tobytes()))
    assert [(image.image_id, image.content) for image in images] == expected
    assert all(image.is_held and image.status == GOOD_IMAGE for image in images)
    short = [part.index for part in parts if part.cpp_length < part.length]
    assert short
    for index in short:
        servers.receivers[index].wait_for_line("leaves out 1 bytes at the end of part")


@pytest.mark.slow
def test_a_cpp_receiver_finds_metadata_and_bytes_where_it_expects_them(make_servers: MakeServers) -> None:
    """A C++ receiver, played by the test: two frames, the metadata within 512 bytes and field by field."""
    servers = make_servers(**FIVE)
    with ExitStack() as stack:
        context = stack.enter_context(zmq.Context())
        sockets = []
        for pair, address in servers.addresses.items():
            socket = stack.enter_context(open_socket(context, zmq.SUB))
            socket.subscribe(b"")
            socket.connect(address)
            servers.start_sender(pair)
            sockets.append(socket)
        servers.wait_for_pairs()
        servers.source.metadata.gf.scan_id = 3
        servers.source.publish(17, pixels_of(17))
        expected = ImageMetadata()
        expected.CopyFrom(servers.source.metadata)
        expected.sequence = 0
        for part, socket in zip(parts_of(servers.config), sockets, strict=True):
            assert socket.poll(60_000)
            metadata, content = socket.recv_multipart()
            assert len(metadata) <= MAX_METADATA_BYTES
            assert content == pixels_of(17).tobytes()[part.offset : part.offset + part.length]
            found = ImageMetadata.FromString(metadata)
            found.ClearField("forwarding")
            assert found == expected


def test_images_of_a_cpp_source_arrive_on_the_second_server(make_servers: MakeServers) -> None:
    servers = make_servers()
    servers.start_sync()
    with CppSource(servers.first.config) as source:
        sender = servers.start_sender(0)
        servers.start_receiver(0)
        source.wait_for_subscriber()
        wait_for_connections([sender], "n_receivers")
        with StreamReader(servers.second) as reader:
            for image_id in (5, 6, 7, 8):
                source.publish(image_id, pixels_of(image_id))
            images = reader.receive(4)
    assert [image.image_id for image in images] == [5, 6, 7, 8]
    assert all(np.array_equal(image.pixels, pixels_of(image.image_id)) for image in images)
    assert all(image.metadata.gf.scan_id == 3 and image.is_held for image in images)


@pytest.mark.fault(
    fault="forwarding: {what} of one pair of three",
    state="images are forwarded",
    promise="the pair is named within 2 s, its images are listed by id, the others stay in order; once it "
    "is back all images come",
)
@pytest.mark.parametrize(
    ("what", "side", "number"),
    [
        ("receiver killed", "receivers", signal.SIGKILL),
        ("sender killed", "senders", signal.SIGKILL),
        ("receiver hung", "receivers", signal.SIGSTOP),
        ("sender hung", "senders", signal.SIGSTOP),
    ],
)
def test_a_pair_that_fails_is_named_and_what_it_costs_is_listed(
    make_servers: MakeServers, seen: Callable[[str], None], what: str, side: str, number: signal.Signals
) -> None:
    servers = make_servers(**THREE)
    servers.start("--timeout", 1)
    with StreamReader(servers.second) as reader:
        servers.publish(images_of(range(1, 11)))
        assert [image.image_id for image in reader.receive(10)] == list(range(1, 11))
        bring_back = servers.fail_pair(side, number)
        failed_at = time.monotonic()
        servers.publish(images_of(range(11, 21)))
        line = servers.sync.wait_for_line(r"images 11[-\d]*: not received without part 1", timeout=30)
        assert_within(time.monotonic() - failed_at, 2.0)
        bring_back()
        servers.sync.wait_for_count("n_corrupted_images", 10)
        assert_all_arrive(servers, reader)
    seen(f'"{line[0]}"; 31 to 40 arrived')


@pytest.mark.fault(
    fault="forwarding: nothing arrives for a time",
    state="images are forwarded",
    promise="what the first server published and the second did not receive is listed by id",
)
def test_images_of_which_nothing_arrived_are_listed(
    make_servers: MakeServers, seen: Callable[[str], None]
) -> None:
    servers = make_servers()
    servers.start()
    with StreamReader(servers.second) as reader:
        servers.publish(images_of(range(1, 4)))
        reader.receive(3)
        servers.receivers[0].kill()
        servers.publish(images_of(range(4, 9)))
        servers.start_receiver(0)
        servers.wait_for_pairs()
        servers.publish(images_of(range(9, 11)))
        assert [image.image_id for image in reader.receive(2)] == [9, 10]
    line = servers.sync.wait_for_line(r"images 4-8: nothing arrived")
    seen(f'"{line[0]}"')


@pytest.mark.fault(
    fault="forwarding: nothing arrives from the end of a run to the middle of the next one",
    state="images are forwarded",
    promise="the images of both runs that did not arrive are listed by id",
)
def test_images_of_two_runs_of_which_nothing_arrived_are_listed(
    make_servers: MakeServers, seen: Callable[[str], None]
) -> None:
    servers = make_servers(**THREE)
    servers.start()
    with StreamReader(servers.second) as reader:
        servers.publish(images_of(range(1, 11)))
        reader.receive(10)
        for receiver in servers.receivers.values():
            receiver.kill()
        servers.publish(images_of(range(11, 21)))
        servers.publish(images_of(range(1, 4), salt=1))
        for pair in servers.addresses:
            servers.start_receiver(pair)
        servers.wait_for_pairs()
        servers.publish(images_of(range(4, 7), salt=1))
        assert [image.image_id for image in reader.receive(3)] == [4, 5, 6]
    line = servers.sync.wait_for_line(r"images 11-20, 1-3: nothing arrived")
    seen(f'"{line[0]}"')
