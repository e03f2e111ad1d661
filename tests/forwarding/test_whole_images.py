"""Whole images through pairs, in the order of a metadata stream, with real processes."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq
from support.peers.cpp_services import CppSource
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
from stddaq.dataplane.metadata import GOOD_IMAGE, MISSING_PACKETS, ImageMetadata

THREE: dict[str, Any] = {"max_number_of_forwarders_spawned": 3, "sender_sends_full_images": True}


@pytest.mark.slow
def test_a_run_on_the_second_server_holds_every_pixel_of_the_first(
    make_servers: MakeServers, directory: Path
) -> None:
    servers = make_servers(**THREE)
    servers.start()
    record_through_a_restart(servers, directory)


@pytest.mark.slow
def test_cpp_peers_are_understood_on_every_connection(make_servers: MakeServers) -> None:
    """A C++ source, senders and metadata stream, played by the test: no field above 99."""
    servers = make_servers(**THREE)
    servers.start_sync()
    with ExitStack() as stack:
        context = stack.enter_context(zmq.Context())
        sockets = []
        for address in (*servers.addresses.values(), servers.metadata_address):
            socket = stack.enter_context(context.socket(zmq.XPUB))
            socket.linger = 0
            socket.bind(address)
            sockets.append(socket)
        for pair in servers.addresses:
            servers.start_receiver(pair)
        for socket in sockets:
            assert socket.poll(60_000)
            assert socket.recv() == b"\1"
        wait_for_connections(list(servers.receivers.values()), "n_senders")
        metadata = ImageMetadata(height=32, width=48, size=3072, dtype=2, status=1)  # pyright: ignore
        ids = (3, 4, 5, 8, 1)
        with StreamReader(servers.second) as reader:
            for image_id in ids:
                metadata.image_id = image_id
                message = metadata.SerializeToString()
                sockets[-1].send(message)
                sockets[image_id % 3].send_multipart([message, pixels_of(image_id).tobytes()])
            images = reader.receive(len(ids))
    assert [image.image_id for image in images] == list(ids)
    assert all(np.array_equal(image.pixels, pixels_of(image.image_id)) for image in images)
    assert all(image.is_held and image.status == GOOD_IMAGE for image in images)


@pytest.mark.slow
def test_cpp_receivers_find_metadata_and_bytes_where_they_expect_them(make_servers: MakeServers) -> None:
    """C++ receivers and metadata synchroniser, played by the test, and images of a C++ source."""
    servers = make_servers(**THREE)
    with ExitStack() as stack:
        context = stack.enter_context(zmq.Context())
        source = stack.enter_context(CppSource(servers.first.config))
        sockets = []
        for pair, address in [*servers.addresses.items(), (-1, servers.metadata_address)]:
            socket = stack.enter_context(open_socket(context, zmq.SUB))
            socket.subscribe(b"")
            socket.connect(address)
            service = servers.start_sender(pair) if pair >= 0 else servers.start_metadata()
            source.wait_for_subscriber()
            wait_for_connections([service], "n_receivers")
            sockets.append(socket)
        for image_id in (5, 6, 7):
            source.publish(image_id, pixels_of(image_id))
        for image_id in (5, 6, 7):
            assert sockets[image_id % 3].poll(60_000)
            message, content = sockets[image_id % 3].recv_multipart()
            assert content == pixels_of(image_id).tobytes()
            assert sockets[-1].poll(60_000)
            for found in (message, sockets[-1].recv()):
                metadata = ImageMetadata.FromString(found)
                assert (metadata.image_id, metadata.size, metadata.gf.scan_id) == (image_id, 3072, 3)
                assert len(found) <= 512


@pytest.mark.fault(
    fault="forwarding of whole images: {what} of one pair of three",
    state="images are forwarded",
    promise="it is named within 2 s, its images are listed by id, the others come in order; once it is back "
    "all come",
)
@pytest.mark.parametrize(
    ("what", "side", "number"),
    [
        ("receiver killed", "receivers", signal.SIGKILL),
        ("sender hung", "senders", signal.SIGSTOP),
    ],
)
def test_a_pair_that_fails_costs_its_images_and_no_others(
    make_servers: MakeServers, seen: Callable[[str], None], what: str, side: str, number: signal.Signals
) -> None:
    servers = make_servers(**THREE)
    servers.start("--timeout", 5)
    with StreamReader(servers.second) as reader:
        servers.publish(images_of(range(1, 11)))
        assert [image.image_id for image in reader.receive(10)] == list(range(1, 11))
        bring_back = servers.fail_pair(side, number)
        failed_at = time.monotonic()
        servers.publish(images_of(range(11, 21)))
        other = servers.senders if side == "receivers" else servers.receivers
        other[1].wait_for_line("has disconnected", timeout=30)
        assert_within(time.monotonic() - failed_at, 2.0)
        # Metadata that arrive one by one are given up one by one, and listed once a period.
        line = servers.sync.wait_for_line(r"images 13.*: not received through pair 1", timeout=30)
        assert [image.image_id for image in reader.receive(7)] == [11, 12, 14, 15, 17, 18, 20]
        bring_back()
        assert_all_arrive(servers, reader)
    seen(f'"{line[0]}"; 31 to 40 arrived')


@pytest.mark.fault(
    fault="forwarding of whole images of a C++ source: a receiver hangs until the next run",
    state="images are forwarded",
    promise="what it receives late is no image of the next run",
)
def test_late_images_of_a_cpp_source_are_none_of_the_next_run(
    make_servers: MakeServers, seen: Callable[[str], None]
) -> None:
    servers = make_servers(**THREE)
    servers.start_sync("--timeout", 1)
    with CppSource(servers.first.config) as source:
        senders = [servers.start_sender(pair) for pair in servers.addresses]
        senders.append(servers.start_metadata())
        for pair in servers.addresses:
            servers.start_receiver(pair)
        for _ in senders:
            source.wait_for_subscriber()
        wait_for_connections(senders, "n_receivers")
        with StreamReader(servers.second) as reader:

            def publish(run: int, ids: range) -> None:
                for image_id in ids:
                    source.publish(image_id, pixels_of(image_id, salt=run))

            publish(1, range(1, 11))
            reader.receive(10)
            servers.receivers[1].send(signal.SIGSTOP)
            publish(1, range(11, 21))
            servers.sync.wait_for_count("n_corrupted_images", 3)
            # Until then, the system would keep images of the next run for it as well.
            servers.senders[1].wait_for_line("has disconnected", timeout=30)
            publish(2, range(1, 11))
            servers.sync.wait_for_count("n_corrupted_images", 7)
            reader.receive(13)
            servers.receivers[1].send(signal.SIGCONT)
            servers.sync.wait_for_count("n_late", 3)
            wait_for_connections([servers.senders[1]], "n_receivers")
            publish(2, range(11, 21))
            images = reader.receive(10)
    assert [image.image_id for image in images] == list(range(11, 21))
    assert all(np.array_equal(image.pixels, pixels_of(image.image_id, salt=2)) for image in images)
    seen("the late images were counted, 11 to 20 of the next run arrived")


@pytest.mark.fault(
    fault="forwarding of whole images: the metadata stream is killed",
    state="images are forwarded",
    promise="the images published until it is back are listed by id, later ones come",
)
def test_images_without_metadata_are_listed(make_servers: MakeServers, seen: Callable[[str], None]) -> None:
    servers = make_servers(**THREE)
    servers.start()
    with StreamReader(servers.second) as reader:
        servers.publish(images_of(range(1, 4)))
        reader.receive(3)
        assert servers.metadata
        servers.metadata.kill()
        servers.sync.wait_for_line(r"a sender has disconnected")
        servers.publish(images_of(range(4, 9)))
        servers.start_metadata()
        servers.wait_for_pairs()
        servers.publish(images_of(range(9, 12)))
        assert [image.image_id for image in reader.receive(3)] == [9, 10, 11]
    line = servers.sync.wait_for_line(r"images 4-8: nothing arrived")
    seen(f'"{line[0]}"')


@pytest.mark.slow
def test_images_without_pixels_are_announced_blank_on_demand(make_servers: MakeServers) -> None:
    servers = make_servers(**THREE)
    servers.start("--timeout", 5, "--announce-incomplete")
    with StreamReader(servers.second) as reader:
        servers.receivers[1].kill()
        servers.publish(images_of(range(6)))
        images = reader.receive(6)
    assert [(image.image_id, image.status) for image in images if image.image_id % 3 == 1] == [
        (1, MISSING_PACKETS),
        (4, MISSING_PACKETS),
    ]
    for image in images:
        expected = 0 if image.image_id % 3 == 1 else pixels_of(image.image_id)
        assert image.is_held
        assert np.all(image.pixels == expected)
