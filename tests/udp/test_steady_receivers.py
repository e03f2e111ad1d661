"""Receivers as processes, while frames arrive in order: with compiled code, and without numba."""

from __future__ import annotations

import itertools
import signal
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from support.peers.assembly_bench import eiger
from support.peers.udp_detectors import eiger_frame, free_udp_ports, gigafrost_frame
from support.processes.deployment import Deployment
from support.processes.udp_receivers import MakeModule, Module, ReceivedFrame

from stddaq.udp.zmq_function import address_of_send

RANDOM = np.random.default_rng(4)
EIGER_KEYS = {"detector_type": "eiger", "n_modules": 4, "bit_depth": 8}


# Python sends the messages if pyzmq does not show its library, or if that cannot.
WITHOUT_ADDRESS = """
from stddaq.udp import zmq_function
zmq_function.address_of_send = lambda: 0
"""
WITHOUT_NUMBA = "raise ModuleNotFoundError('no numba', name='numba')"
OTHER_MODULES = {
    "sent by Python": ("sitecustomize", WITHOUT_ADDRESS),
    "without numba": ("numba", WITHOUT_NUMBA),
}


@pytest.fixture(scope="module")
def compiled() -> None:
    """Compile for the cache: receivers that had to would be ready later than tests wait on a busy machine."""
    eiger().compile()


@pytest.fixture(params=["compiled", *OTHER_MODULES])
def receiver(
    make_deployment: Callable[..., Deployment],
    request: pytest.FixtureRequest,
    tmp_path: Path,
    compiled: None,
) -> Iterator[Module]:
    deployment = make_deployment(preloaded=False, start_udp_port=free_udp_ports(4), **EIGER_KEYS)
    if request.param in OTHER_MODULES:
        name, source = OTHER_MODULES[request.param]
        (tmp_path / f"{name}.py").write_text(source)
        deployment.env["PYTHONPATH"] = str(tmp_path)
    is_compiled = request.param != "without numba"
    module = Module(deployment, 0, "--idle-time", 5)
    has_advice = any("pip install 'stddaq[udp]'" in line for line in module.service.stdout)
    assert has_advice != is_compiled
    assert ("/numba/" in Path(f"/proc/{module.service.pid}/maps").read_text()) == is_compiled
    yield module
    module.close()


@pytest.mark.slow
def test_every_frame_is_announced_once_and_only_the_one_that_lacks_a_packet_is_not_complete(
    receiver: Module,
) -> None:
    pixels = RANDOM.integers(1, 256, (200, 256, 512), np.uint8)
    sequences = []
    for first in range(0, 200, 10):
        packets = [eiger_frame(frame_id, pixels[frame_id]) for frame_id in range(first, first + 10)]
        if first == 100:
            del packets[3][7]
        receiver.send(*(packet for frame in packets for packet in frame))
        frames = receiver.receive(10)
        assert [frame.frame_id for frame in frames] == [*range(first, first + 10)]
        assert [frame.n_missing for frame in frames] == [int(frame.frame_id == 103) for frame in frames]
        pixels[103].reshape(32, -1)[7] = 0
        assert all(frame.pixels == pixels[frame.frame_id].tobytes() for frame in frames)
        sequences += [int(frame.message["sequence"]) for frame in frames]
    assert np.diff(sequences).tolist() == [1] * 199
    receiver.wait_for_total("processed_times", 200 * 32 - 1)
    receiver.wait_for_total("frames_counter", 200)
    totals = receiver.totals()
    assert (totals["n_corrupted_frames"], totals["n_missed_packets"]) == (1, 1)
    assert (totals["n_late"], totals["n_repeated"], totals["n_restarts"]) == (0, 0, 0)


def test_compiled_code_can_send_announcements() -> None:
    assert address_of_send()


@pytest.mark.slow
def test_a_frame_that_is_being_received_when_the_receiver_ends_is_announced(receiver: Module) -> None:
    pixels = RANDOM.integers(1, 256, (5, 256, 512), np.uint8)
    for frame_id in range(4):
        receiver.send(*eiger_frame(frame_id, pixels[frame_id]))
        receiver.receive(1)
    receiver.send(*eiger_frame(4, pixels[4])[:9])
    receiver.wait_for_total("processed_times", 4 * 32 + 9)
    receiver.service.send(signal.SIGTERM)
    (frame,) = receiver.receive(1)
    assert (frame.frame_id, frame.n_missing) == (4, 23)
    assert frame.pixels[: 9 * 4096] == pixels[4].tobytes()[: 9 * 4096]
    assert not any(frame.pixels[9 * 4096 :])
    assert receiver.service.wait() == 0


@pytest.mark.slow
def test_a_frame_that_stops_is_closed_after_the_idle_time(make_module: MakeModule) -> None:
    receiver = make_module("eiger", 0, "--idle-time", 2, n_modules=4, bit_depth=8)
    pixels = RANDOM.integers(1, 256, (256, 512), np.uint8)
    for frame_id in range(4):
        receiver.send(*eiger_frame(frame_id, pixels))
        receiver.receive(1)
    receiver.send(*eiger_frame(4, pixels)[:9])
    (frame,) = receiver.receive(1)
    assert (frame.frame_id, frame.n_missing) == (4, 23)
    receiver.send(*eiger_frame(5, pixels))
    assert receiver.receive(1)[0].n_missing == 0


@pytest.mark.slow
def test_frames_of_few_packets_are_announced_with_what_their_headers_say(make_module: MakeModule) -> None:
    shape = (252, 528)
    # The sender may be paused within a frame.
    height, width = shape
    receiver = make_module(
        "gigafrost", 3, "--idle-time", 5, image_pixel_height=height, image_pixel_width=width
    )
    pixels = RANDOM.integers(1, 4096, (63, 264), np.uint16)
    frames: list[ReceivedFrame] = []
    for first in range(1, 401, 40):
        ids = range(first, first + 40)
        receiver.send(
            *(
                packet
                for i in ids
                for packet in gigafrost_frame(i, pixels, module=3, shape=shape, rows=18, timestamp=i)
            )
        )
        frames = receiver.receive(40)
        assert [(frame.frame_id, frame.n_missing) for frame in frames] == [(i, 0) for i in ids]
        assert [int(frame.message["frame_timestamp"]) for frame in frames] == [*ids]
        assert len({frame.pixels for frame in frames}) == 1
    assert struct.unpack_from("<HBBBBBB", frames[-1].message.tobytes(), 16) == (3, 0, 1, 5, 1, 0, 0)
    receiver.wait_for_total("processed_times", 1600)


@pytest.mark.slow
def test_checks_go_on_while_each_call_completes_frames(make_module: MakeModule) -> None:
    receiver = make_module("gigafrost", 3, image_pixel_height=252, image_pixel_width=528)
    pixels = RANDOM.integers(1, 4096, (63, 264), np.uint16)
    is_over = threading.Event()

    def flood() -> None:
        for i in itertools.count(1):
            if is_over.is_set():
                return
            receiver.send(*gigafrost_frame(i, pixels, module=3, shape=(252, 528), rows=18, timestamp=i))

    sender = threading.Thread(target=flood)
    sender.start()
    try:
        # Statistics lines are written by the checks.
        start = 0
        for _ in range(3):
            receiver.service.wait_for_line(r"frames_counter=[1-9]\d{2}", start=start)
            start = len(receiver.service.stdout)
        receiver.service.send(signal.SIGTERM)
        assert receiver.service.wait() == 0
    finally:
        is_over.set()
        sender.join()
