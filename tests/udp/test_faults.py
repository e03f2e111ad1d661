"""The faults of networks, receivers and converters, sent to processes: rows of the table of faults."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import pytest
import zmq
from support.peers.udp_detectors import eiger_frame, sls_packet
from support.processes.deployment import Deployment
from support.processes.stream_readers import StreamReader
from support.processes.udp_modules import EIGER
from support.processes.udp_receivers import MakeModule

from stddaq.dataplane.endpoints import converted_frames
from stddaq.dataplane.metadata import GOOD_IMAGE
from stddaq.udp.frame_message import EIGER_FRAME

# Packets of the frames that the test sends: (frame, number).
Sent = Sequence[tuple[int, int]]
ALL = range(32)


def frame(frame_id: int, numbers: Sequence[int] = ALL) -> list[tuple[int, int]]:
    return [(frame_id, number) for number in numbers]


@pytest.mark.fault(
    fault="network: {what}",
    state="running",
    promise="each packet counts once, a frame lacks only what was not received, and that is 0",
)
@pytest.mark.parametrize(
    ("what", "sent", "lost", "counts"),
    [
        ("the last packet of a burst lost", [*frame(1), *frame(2, ALL[:31])], {2: [31]}, {}),
        (
            "one packet lost and another one repeated",
            [*frame(1, [*ALL[:7], 3, *ALL[8:]]), *frame(2)],
            {1: [7]},
            {"n_repeated": 1},
        ),
        ("packets in reverse order", [*frame(1, ALL[::-1]), *frame(2, ALL[::-1])], {}, {}),
        (
            "packets of a frame that has left",
            [*frame(1), *frame(2), (1, 3), (2, 31), *frame(3)],
            {},
            {"n_late": 2},
        ),
        (
            "packets of two frames mixed",
            [*frame(1, ALL[:30]), *frame(2, ALL[:5]), *frame(1, ALL[30:]), *frame(2, ALL[5:])],
            {},
            {},
        ),
        ("ids that restart", [*frame(1500), *frame(1), *frame(2)], {}, {"n_restarts": 1}),
    ],
)
def test_packets_count_once_and_what_was_not_received_is_0(
    make_module: MakeModule,
    what: str,
    sent: Sent,
    lost: Mapping[int, Sequence[int]],
    counts: Mapping[str, int],
    seen: Callable[[str], None],
) -> None:
    receiver = make_module("eiger", 0, n_modules=4, bit_depth=8)
    ids = list(dict.fromkeys(frame_id for frame_id, _ in sent))
    random = np.random.default_rng(3)
    pixels = {frame_id: random.integers(1, 256, (256, 512), np.uint8) for frame_id in ids}
    packets = {frame_id: eiger_frame(frame_id, pixels[frame_id]) for frame_id in ids}
    receiver.send(*(packets[frame_id][number] for frame_id, number in sent))
    frames = receiver.receive(len(ids))
    for frame_id, numbers in lost.items():
        pixels[frame_id].reshape(32, -1)[list(numbers)] = 0
    assert [frame.frame_id for frame in frames] == ids
    assert [frame.n_missing for frame in frames] == [len(lost.get(frame_id, ())) for frame_id in ids]
    assert [frame.pixels for frame in frames] == [pixels[frame_id].tobytes() for frame_id in ids]
    receiver.wait_for_total("processed_times", len(sent))
    expected = {
        "frames_counter": len(ids),
        "n_corrupted_frames": len(lost),
        "n_missed_packets": sum(map(len, lost.values())),
        "n_repeated": 0,
        "n_late": 0,
        "n_restarts": 0,
        **counts,
    }
    totals = receiver.totals()
    assert {key: totals[key] for key in expected} == expected
    seen(", ".join(f"{key}: {n}" for key, n in expected.items() if n))


@pytest.mark.fault(
    fault="network: datagrams of a wrong size, version, detector or number",
    state="running",
    promise="counted by kind and named with their sender, never in a frame",
)
def test_datagrams_that_are_no_packets_are_named(
    make_module: MakeModule, seen: Callable[[str], None]
) -> None:
    receiver = make_module("eiger", 0, n_modules=4, bit_depth=8)
    pixels = np.full((256, 512), 7, np.uint8)
    whole, payload = eiger_frame(1, pixels), bytes(4096)
    bad = {
        "size": whole[5][:-1],
        "version": sls_packet(1, 5, payload, detector=1, version=1),
        "detector": sls_packet(1, 5, payload, detector=3),
        "number": sls_packet(1, 32, payload, detector=1),
    }
    receiver.send(*whole[:5], *bad.values(), *whole[5:])
    (received,) = receiver.receive(1)
    assert (received.n_missing, received.pixels) == (0, pixels.tobytes())
    for kind in bad:
        receiver.wait_for_total(f"n_bad_{kind}", 1)
        receiver.service.wait_for_line(rf"UDP port \d+: {kind}: expected .*, from 127.0.0.1:\d+")
    seen("the frame is good, each kind is counted once and named")


@pytest.fixture
def push(make_deployment: Callable[..., Deployment]) -> Iterator[tuple[Deployment, Callable[..., None]]]:
    """Yield a deployment, and a function that pushes messages (image, module) as a C++ converter does."""
    deployment = make_deployment(**EIGER)
    context = zmq.Context()
    with contextlib.ExitStack() as closing:
        closing.callback(context.destroy, linger=0)
        socket = context.socket(zmq.PUSH)
        socket.connect(converted_frames(deployment.detector_name))

        def push(messages: Sequence[tuple[int, int]]) -> None:
            for image_id, module in messages:
                message = np.zeros((), EIGER_FRAME)
                message["id"], message["module"] = image_id, module
                socket.send(message.tobytes())

        yield deployment, push


def both(*ids: int) -> list[tuple[int, int]]:
    return [(image_id, module) for image_id in ids for module in (0, 1)]


@pytest.mark.fault(
    fault="converter (C++): {what}",
    state="running",
    promise="every image is announced once, and none waits for a message that cannot come",
)
@pytest.mark.parametrize(
    ("what", "messages", "ids", "line"),
    [
        (
            "a second message of a module",
            [*both(1), (2, 0), (2, 0), (2, 1), *both(3)],
            [1, 2, 3],
            "n_repeated=1",
        ),
        (
            "a message for an image that has left",
            [*both(1, 2, 3), (2, 1), *both(4)],
            [1, 2, 3, 4],
            "n_late=1",
        ),
        ("ids that restart", both(500, 501, 1, 2), [500, 501, 1, 2], "the image ids restart"),
    ],
)
def test_messages_of_converters_announce_each_image_once(
    push: tuple[Deployment, Callable[..., None]],
    what: str,
    messages: Sequence[tuple[int, int]],
    ids: Sequence[int],
    line: str,
    seen: Callable[[str], None],
) -> None:
    deployment, send = push
    sync = deployment.start("std_data_sync_module", "--timeout", 60)
    with StreamReader(deployment) as reader:
        send(messages)
        received = reader.receive(len(ids))
        assert reader.receive_one(0.2) is None
    assert [image.image_id for image in received] == ids
    assert all(image.status == GOOD_IMAGE for image in received)
    sync.wait_for_line(line)
    seen(f"{line}; images {', '.join(map(str, ids))} announced once each")
