"""`std_bsread_recv` as a process: messages of a camera, and the images in the ring."""

from __future__ import annotations

import hashlib
import json
import signal
import struct
import time
from collections.abc import Callable
from typing import Any, get_args

import bsread
import numpy as np
import pytest
import zmq
from support.peers.cameras import (
    NAME,
    PCO,
    Camera,
    simulated_scene,
    start_camera,
    start_receiver,
    wait_for_totals,
)
from support.processes.deployment import Deployment, free_port, wait_until
from support.processes.machine import assert_within
from support.processes.recording import pixels_of
from support.processes.sources import refusal
from support.processes.stream_readers import ImageReader, ReceivedImage

from stddaq.client.simulator import SimulatorClient
from stddaq.sources.bsread.camera_server import camera_name
from stddaq.sources.bsread.camera_server import main as simulate_pco
from stddaq.sources.bsread.image_messages import REJECTIONS
from stddaq.sources.bsread.receiver import main
from stddaq.sources.bsread.reordering import MAX_WAIT_S
from stddaq.wire.bsread import Compression

COMPRESSIONS: tuple[Compression, ...] = get_args(Compression)


@pytest.fixture
def pco(make_deployment: Callable[..., Deployment]) -> Deployment:
    return make_deployment(**PCO)


def ids(images: list[ReceivedImage]) -> list[int]:
    return [image.image_id for image in images]


def assert_pixels(images: list[ReceivedImage]) -> None:
    for image in images:
        assert image.is_held
        np.testing.assert_array_equal(image.pixels, pixels_of(image.image_id, image.pixels.shape))


@pytest.mark.slow
@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("size", [(32, 48), (1031, 1000)], ids=str)
def test_every_image_of_the_camera_is_in_the_ring_in_order(
    make_deployment: Callable[..., Deployment], compression: Compression, size: tuple[int, int]
) -> None:
    pco = make_deployment(**PCO, image_pixel_height=size[0], image_pixel_width=size[1])
    n, port = (900 if size[0] < 1000 else 12), free_port()
    with ImageReader(pco) as reader:
        receiver = start_receiver(pco, f"tcp://127.0.0.1:{port}")
        wait_for_totals(receiver, n_subscribers=1)
        options = ("--compression", compression, "--rate", 0, "--n-images", n)
        start_camera(pco, *options, "--wait-for-subscribers", 4, port=port)
        received = reader.receive(n)
        scene = simulated_scene(reader.config.image_shape)
    assert ids(received) == list(range(n))
    for image in received:
        assert image.is_held
        assert image.metadata.pco.bsread_name == pco.detector_name
        assert abs(image.metadata.pco.global_timestamp_sec - time.time()) < 60
        np.testing.assert_array_equal(image.pixels, scene.image(image.image_id))


@pytest.mark.slow
@pytest.mark.parametrize("signal_number", [None, signal.SIGTERM], ids=["by itself", "SIGTERM"])
def test_camera_server_that_has_sent_all_waits_for_a_slow_receiver_until_it_is_terminated(
    make_deployment: Callable[..., Deployment], signal_number: int | None
) -> None:
    """Images that the receiver had not taken one second after the last one were discarded."""
    pco = make_deployment(**PCO, image_pixel_height=1031, image_pixel_width=1000)
    camera, address = start_camera(pco, "--rate", 0, "--n-images", 30, "--wait-for-subscribers", 1)
    with zmq.Context() as context, context.socket(zmq.PULL) as receiver:
        receiver.linger, receiver.rcvhwm, receiver.rcvtimeo = 0, 1, 60_000
        receiver.connect(address)
        camera.wait_for_line("all 30 images published")
        if signal_number:
            begin = time.monotonic()
            assert camera.end(signal_number) == 0
            assert_within(time.monotonic() - begin, 2.0)
            return
        time.sleep(1.2)  # The receiver hangs for longer than a terminated server waits.
        found = [json.loads(receiver.recv_multipart()[0])["pulse_id"] for _ in range(30)]
        assert found == list(range(30))
        assert camera.wait() == 0


@pytest.mark.parametrize("compression", [None, "bitshuffle_lz4", "lz4"])
def test_images_of_psi_bsread_are_received(pco: Deployment, compression: str | None) -> None:
    port = free_port()
    sender = bsread.Sender(
        port=port,
        address="tcp://127.0.0.1",
        data_compression=compression,
        data_header_compression=compression,
    )
    with ImageReader(pco) as reader, sender:
        receiver = start_receiver(pco, f"tcp://127.0.0.1:{port}")
        wait_for_totals(receiver, n_subscribers=1, n_connections=4)
        for i in range(50):
            pixels = pixels_of(i, (32, 48))
            sender.send(pulse_id=i, timestamp=(1000 + i, 5), data={"temperature": 1.5, NAME: pixels})
        received = reader.receive(50)
    assert ids(received) == list(range(50))
    assert_pixels(received)
    assert [image.metadata.pco.global_timestamp_sec for image in received] == list(range(1000, 1050))
    assert {image.metadata.pco.global_timestamp_ns for image in received} == {5}
    assert {image.metadata.pco.bsread_name for image in received} == {NAME}


def test_subscriber_receives_what_is_published(pco: Deployment) -> None:
    with ImageReader(pco) as reader, Camera(kind=zmq.PUB) as camera:
        receiver = start_receiver(pco, camera.address, "-t", "sub")
        wait_for_totals(receiver, n_subscribers=1, n_connections=1)
        # A subscription arrives after a moment.
        found, first = None, -1
        while found is None:
            first += 1
            camera.send_images([first])
            found = reader.receive_one(0.05)
        # It may be an earlier image than the last one.
        reader.receive(first - found.image_id)
        camera.send_images(range(first + 1, first + 20))
        received = reader.receive(19)
    assert ids(received) == list(range(first + 1, first + 20))
    assert_pixels(received)


def test_simulated_camera_publishes_to_subscribers(pco: Deployment) -> None:
    with ImageReader(pco) as reader:
        _, address = start_camera(pco, "-t", "sub", "--rate", 100)
        start_receiver(pco, address, "-t", "sub")
        received = ids(reader.receive(20))
    assert received == list(range(received[0], received[0] + 20))


@pytest.mark.parametrize("dtype", [">u2", "<u2"])
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_pixels_have_the_byte_order_of_the_channel(
    pco: Deployment, dtype: str, compression: Compression
) -> None:
    with ImageReader(pco) as reader, Camera() as camera:
        receiver = start_receiver(pco, camera.address)
        wait_for_totals(receiver, n_subscribers=1)
        for i in range(5):
            pixels = pixels_of(i, (32, 48)).astype(dtype)
            camera.send(camera.message(i, pixels=pixels, compression=compression))
        assert_pixels(reader.receive(5))


def changed_main(parts: list[bytes], **fields: Any) -> list[bytes]:
    return [json.dumps(json.loads(parts[0]) | fields).encode(), *parts[1:]]


BAD_MESSAGES: dict[str, tuple[str, Callable[[Camera], list[bytes]]]] = {
    "one empty part": ("parts", lambda c: [b""]),
    "a part less": ("parts", lambda c: c.message(5)[:-1]),
    "a part more": ("parts", lambda c: [*c.message(5), b""]),
    "no JSON": ("main_header", lambda c: [b"\xff", *c.message(5)[1:]]),
    "no pulse id": ("main_header", lambda c: changed_main(c.message(5), pulse_id=None)),
    "pulse id too large": ("main_header", lambda c: changed_main(c.message(5), pulse_id=2**64)),
    "other header": ("hash", lambda c: [c.message(5)[0], b"{}", *c.message(5)[2:]]),
    "other hash": ("hash", lambda c: changed_main(c.message(5), hash=hashlib.md5(b"x").hexdigest())),
    "type unknown": ("data_header", lambda c: bad_channel(c, type="uint24")),
    "shape absurd": ("shape", lambda c: c.message(5, shape=(2**31, 2**31))),
    "shape of zero": ("data_header", lambda c: bad_channel(c, shape=[0, 32])),
    "other shape": ("shape", lambda c: c.message(5, pixels=np.zeros((32, 49), "<u2"))),
    "shape turned": ("shape", lambda c: c.message(5, pixels=np.zeros((48, 32), "<u2"))),
    "much larger image": ("shape", lambda c: c.message(5, pixels=np.zeros((96, 96), "<u2"))),
    "other type": ("type", lambda c: c.message(5, pixels=np.zeros((32, 48), "<u4"))),
    "signed": ("type", lambda c: c.message(5, pixels=np.zeros((32, 48), "<i2"))),
    "no image": ("channels", lambda c: c.message(5, shape=(1536,))),
    "a pixel less": ("size", lambda c: with_value(c, bytes(32 * 48 * 2 - 2))),
    "a pixel more": ("size", lambda c: with_value(c, bytes(32 * 48 * 2 + 2))),
    "garbage": ("blob", lambda c: with_value(c, b"garbage" * 99, "bitshuffle_lz4")),
    "garbage in lz4": ("blob", lambda c: with_value(c, b"garbage" * 99, "lz4")),
    "damaged": ("blob", lambda c: damaged(c, 6, "bitshuffle_lz4")),
    "damaged lz4": ("blob", lambda c: damaged(c, 7, "lz4")),
    "absurd size": (
        "blob",
        lambda c: with_value(c, struct.pack(">qi", 2**62, 8192) + bytes(99), "bitshuffle_lz4"),
    ),
    "null": ("null", lambda c: [*c.message(5)[:2], b"", b""]),
    "short timestamp": ("timestamp", lambda c: [*c.message(5)[:3], bytes(8)]),
}


def bad_channel(camera: Camera, **fields: Any) -> list[bytes]:
    parts = camera.message(5)
    content = json.loads(parts[1])
    content["channels"][0] |= fields
    header = json.dumps(content).encode()
    return changed_main([parts[0], header, *parts[2:]], hash=hashlib.md5(header).hexdigest())


def with_value(camera: Camera, value: bytes, compression: Compression = "none") -> list[bytes]:
    parts = camera.message(5, compression=compression)
    return [*parts[:2], value, parts[3]]


def damaged(camera: Camera, image_id: int, compression: Compression) -> list[bytes]:
    """Return a message with valid lengths and damaged LZ4 data."""
    parts = camera.message(image_id, compression=compression)
    return [*parts[:2], parts[2][:16] + bytes([255]) * (len(parts[2]) - 16), parts[3]]


@pytest.mark.slow
def test_bad_messages_are_counted_by_kind_and_never_reach_the_ring(pco: Deployment) -> None:
    with ImageReader(pco) as reader, Camera() as camera:
        receiver = start_receiver(pco, camera.address)
        wait_for_totals(receiver, n_subscribers=1)
        camera.send_images(range(5))
        expected: dict[str, int] = {}
        for kind, make in BAD_MESSAGES.values():
            camera.send(make(camera))
            expected[f"n_bad_{kind}"] = expected.get(f"n_bad_{kind}", 0) + 1
        assert {key.removeprefix("n_bad_") for key in expected} == set(REJECTIONS)
        found = wait_for_totals(receiver, **expected)
        assert {key: found[key] for key in expected} == expected
        # The bad messages had id 5, or 6 and 7, whose damage is found only when they are decoded.
        camera.send_images(range(8, 12))
        received = reader.receive(9)
    assert ids(received) == [*range(5), *range(8, 12)]
    assert_pixels(received)
    for kind in REJECTIONS:
        assert any(f"message rejected ({kind}): " in line for line in receiver.stdout), kind


@pytest.mark.slow
def test_large_damaged_images_are_left_out_and_the_order_is_kept(
    make_deployment: Callable[..., Deployment],
) -> None:
    pco = make_deployment(**PCO, image_pixel_height=1031, image_pixel_width=1000)
    with ImageReader(pco) as reader, Camera((1031, 1000)) as camera:
        receiver = start_receiver(pco, camera.address)
        wait_for_totals(receiver, n_subscribers=1)
        for i in range(40):
            how = COMPRESSIONS[i % 3]
            camera.send(damaged(camera, i, "lz4") if i % 10 == 2 else camera.message(i, compression=how))
        received = reader.receive(36)
        wait_for_totals(receiver, n_bad_blob=4)
    assert ids(received) == [i for i in range(40) if i % 10 != 2]
    assert_pixels(received)


@pytest.mark.slow
def test_much_too_long_messages_do_not_close_a_connection(pco: Deployment) -> None:
    with ImageReader(pco) as reader, Camera() as camera:
        receiver = start_receiver(pco, camera.address)
        wait_for_totals(receiver, n_subscribers=1, n_connections=4)
        for _ in range(4):
            camera.send([b"x" * 50_000_000])
            camera.send(with_value(camera, b"x" * 50_000_000))
        assert wait_for_totals(receiver, n_bad_parts=4, n_bad_size=4)["n_connections"] == 4
        camera.send_images(range(20))
        received = reader.receive(20)
    assert ids(received) == list(range(20))


@pytest.mark.slow
def test_repeated_and_late_images_are_counted_and_not_published(pco: Deployment) -> None:
    with ImageReader(pco) as reader, Camera() as camera:
        receiver = start_receiver(pco, camera.address, "-n", 1)
        wait_for_totals(receiver, n_subscribers=1)
        camera.send_images([0, 1, 2, 2, 3, 1, 4, 7, 8, 6, 9, 9, 10])
        received = reader.receive(9)
        wait_for_totals(receiver, n_repeated=3, n_late=1, n_skipped_ids=2)
    assert ids(received) == [0, 1, 2, 3, 4, 7, 8, 9, 10]


@pytest.mark.slow
def test_missing_image_holds_back_the_others_for_a_limited_time(pco: Deployment) -> None:
    with ImageReader(pco) as reader, Camera() as camera:
        receiver = start_receiver(pco, camera.address)
        wait_for_totals(receiver, n_subscribers=1)
        camera.send_images([0, 1, 3])
        assert ids(reader.receive(3)) == [0, 1, 3]
        camera.send_images([2, 4])
        assert ids(reader.receive(1)) == [4]
        wait_for_totals(receiver, n_skipped_ids=1, n_late=1)


@pytest.mark.slow
def test_a_pause_of_the_receiver_makes_no_image_missing(pco: Deployment) -> None:
    with ImageReader(pco) as reader, Camera() as camera:
        receiver = start_receiver(pco, camera.address)
        wait_for_totals(receiver, n_subscribers=1)
        first, was_in_time = 0, False
        while not was_in_time:
            assert first < 400
            camera.send_images([first, first + 2])
            assert ids(reader.receive(1)) == [first]
            receiver.send(signal.SIGSTOP)
            camera.send_images([first + 3, first + 1])
            # The pause is longer than the wait for a missing image.
            was_in_time = reader.receive_one(2 * MAX_WAIT_S) is None
            receiver.send(signal.SIGCONT)
            if not was_in_time:
                assert ids(reader.receive(1)) == [first + 3]
                first += 4
        assert ids(reader.receive(3)) == [first + 1, first + 2, first + 3]


@pytest.mark.slow
def test_restarted_camera_is_recognised(pco: Deployment) -> None:
    with ImageReader(pco) as reader:
        with Camera() as camera:
            receiver = start_receiver(pco, camera.address)
            wait_for_totals(receiver, n_subscribers=1)
            camera.send_images(range(20))
            received = reader.receive(20)
            port = camera.port
        receiver.wait_for_line("disconnected from the camera server")
        with Camera(port=port) as camera:
            camera.send_images(range(3, 20))
            received += reader.receive(17)
        found = wait_for_totals(receiver, n_restarts=1)
    assert ids(received) == [*range(20), *range(3, 20)]
    assert_pixels(received)
    assert (found["n_skipped_ids"], found["n_late"], found["n_repeated"]) == (0, 0, 0)
    receiver.wait_for_line(r"\[event\] the camera's image ids restart")


@pytest.mark.slow
def test_rearmed_camera_is_recognised_on_the_same_connections(pco: Deployment) -> None:
    port = free_port()
    with ImageReader(pco) as reader, SimulatorClient(camera_name(pco.detector_name)) as client:
        receiver = start_receiver(pco, f"tcp://127.0.0.1:{port}")
        wait_for_totals(receiver, n_subscribers=1)
        start_camera(pco, "--trigger", "--rate", 0, port=port)
        client.trigger(30)
        received = reader.receive(30)
        client.rearm(0)
        client.trigger(1)
        received += reader.receive(1)
        client.trigger(29)
        received += reader.receive(29)
    assert ids(received) == [*range(30), *range(30)]


def test_restarted_receiver_continues_with_the_next_image(pco: Deployment) -> None:
    with ImageReader(pco) as reader:
        _, address = start_camera(pco, "--rate", 200)
        receiver = start_receiver(pco, address)
        first = ids(reader.receive(50))
        assert receiver.end() == 0
        start_receiver(pco, address)
        wait_until(lambda: ids(reader.receive(1))[0] > first[-1], what="an image of the second receiver")
        # Images that the camera sent to closing connections of the first receiver are lost.
        reader.receive(50)
        second = ids(reader.receive(50))
    assert first == list(range(first[0], first[0] + 50))
    assert second == list(range(second[0], second[0] + 50))


def test_receiver_has_four_connections_to_the_camera_by_default(pco: Deployment) -> None:
    with Camera() as camera:
        wait_for_totals(start_receiver(pco, camera.address), n_connections=4)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_receiver_ends_with_and_without_a_camera(pco: Deployment, number: int) -> None:
    receiver = start_receiver(pco, f"tcp://127.0.0.1:{free_port()}")
    assert receiver.end(number) == 0
    _, address = start_camera(pco, "--rate", 1000)
    receiver = start_receiver(pco, address)
    wait_for_totals(receiver, processed_times=1)
    assert receiver.end(number) == 0
    assert receiver.stderr == []


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["tcp://host"], "expected tcp://HOST:PORT or ipc://PATH, got 'tcp://host'"),
        (["tcp://127.0.0.1:65536"], "expected tcp://HOST:PORT"),
        (["udp://127.0.0.1:1"], "expected tcp://HOST:PORT"),
        (["-n", "0", "tcp://127.0.0.1:1"], "expected an integer from 1 to 64, got '0'"),
        (["-t", "push", "tcp://127.0.0.1:1"], "invalid choice: 'push'"),
        (["-t", "sub", "-n", "2", "tcp://127.0.0.1:1"], "-n: expected 1 with -t sub, got 2"),
    ],
)
def test_wrong_argument_is_refused(
    pco: Deployment, arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    *options, address = arguments
    assert reason in refusal(capsys, main, *options, pco.config_path, address)


def test_other_detectors_are_refused(deployment: Deployment, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (main, simulate_pco):
        line = refusal(capsys, command, deployment.config_path, "tcp://127.0.0.1:1")
        assert "detector_type: expected pco for" in line


def test_address_in_use_is_refused(pco: Deployment, capsys: pytest.CaptureFixture[str]) -> None:
    with Camera() as camera:
        line = refusal(capsys, simulate_pco, pco.config_path, camera.address)
    assert f"{camera.address}: cannot be bound: Address already in use; end the program that has it" in line
