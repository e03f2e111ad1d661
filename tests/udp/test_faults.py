"""The faults of networks, receivers and converters, sent to processes: rows of the table of faults."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest
from support.peers.udp_detectors import (
    eiger_frame,
    gigafrost_frame,
    gigafrost_packet,
    jungfrau_frame,
    pack12,
    sls_packet,
)
from support.processes.deployment import wait_until
from support.processes.udp_receivers import MakeModule

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
        (
            "packets of a frame lost, the next two frames arrive",
            [*frame(1, ALL[3:]), *frame(2), *frame(3)],
            {1: [0, 1, 2]},
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
    # Frames are counted when they leave, which may be in a later period than that of their packets.
    receiver.wait_for_total("frames_counter", len(ids))
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
    fault="network: a packet with a wrong id, {where}",
    state="running",
    promise="counted as late, never in a frame; no other frame is lost, and the ids do not restart",
)
@pytest.mark.parametrize(("where", "wrong"), [("ahead", 4500), ("far ahead", 2**63), ("far behind", 3)])
def test_a_wrong_id_costs_no_other_frame(
    make_module: MakeModule, where: str, wrong: int, seen: Callable[[str], None]
) -> None:
    receiver = make_module("eiger", 0, "--idle-time", 5, n_modules=4, bit_depth=8)
    pixels = np.full((256, 512), 7, np.uint8)
    for frame_id in range(4000, 4008):
        receiver.send(*eiger_frame(frame_id, pixels))
        if frame_id == 4003:
            receiver.send(eiger_frame(wrong, pixels)[5])
    frames = receiver.receive(8)
    assert [(frame.frame_id, frame.n_missing) for frame in frames] == [(i, 0) for i in range(4000, 4008)]
    receiver.wait_for_total("processed_times", 8 * 32 + 1)
    receiver.wait_for_total("n_late", 1)
    totals = receiver.totals()
    assert (totals["frames_counter"], totals["n_restarts"], totals["n_corrupted_frames"]) == (8, 0, 0)
    seen("8 frames announced, 1 packet late, no restart")


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


@pytest.mark.fault(
    fault="network: GigaFRoST packets that are none of their port: size, protocol, geometry, row, link",
    state="running",
    promise="counted by kind and named with their sender, never in a frame",
)
def test_gigafrost_datagrams_that_are_no_packets_of_the_port_are_named(
    make_module: MakeModule, seen: Callable[[str], None]
) -> None:
    receiver = make_module("gigafrost", 3, image_pixel_height=280, image_pixel_width=528)
    pixels = np.random.default_rng(5).integers(1, 4096, (70, 264), np.uint16)
    whole = gigafrost_frame(1, pixels, module=3, shape=(280, 528), rows=18)
    payload = bytes(7128)
    bad = {
        "size": whole[1][:-1],
        "protocol": b"\xca" + whole[1][1:],
        "geometry": gigafrost_packet(1, 18, payload, module=3, shape=(280, 504)),
        "quadrant": gigafrost_packet(1, 18, payload, module=5, shape=(280, 528)),
        "link": gigafrost_packet(1, 18, payload, module=2, shape=(280, 528)),
        "row": gigafrost_packet(1, 19, payload, module=3, shape=(280, 528)),
    }
    receiver.send(whole[0], *bad.values(), *whole[1:])
    (received,) = receiver.receive(1)
    assert received.n_missing == 0
    assert received.pixels[: pixels.size * 3 // 2] == pack12(pixels)
    for kind in bad:
        receiver.wait_for_total(f"n_bad_{kind}", 1)
        receiver.service.wait_for_line(rf"UDP port \d+: {kind}: expected .*, from 127.0.0.1:\d+")
    seen("the frame is good, each kind is counted once and named")


@pytest.mark.fault(
    fault="network: packets of a GigaFRoST in reverse order, {what}",
    state="running",
    promise="every pixel is in its place, padding is not kept, and the next frame is complete",
)
@pytest.mark.parametrize(
    ("what", "shape", "rows"),
    [
        ("the last one shorter", (280, 528), 18),
        ("padded", (252, 504), 17),
        ("the last one shorter and padded", (252, 528), 18),
    ],
)
def test_packets_of_other_sizes_are_in_their_places_in_any_order(
    make_module: MakeModule, what: str, shape: tuple[int, int], rows: int, seen: Callable[[str], None]
) -> None:
    receiver = make_module("gigafrost", 3, image_pixel_height=shape[0], image_pixel_width=shape[1])
    random = np.random.default_rng(8)
    sent = [random.integers(1, 4096, (shape[0] // 4, shape[1] // 2), np.uint16) for _ in range(2)]
    packets = [gigafrost_frame(i, pixels, module=3, shape=shape, rows=rows) for i, pixels in enumerate(sent)]
    assert len(packets[0]) == 4
    receiver.send(*packets[0][::-1], packets[1][-1], packets[1][-1], *packets[1][:-1])
    frames = receiver.receive(2)
    assert [frame.n_missing for frame in frames] == [0, 0]
    for frame, pixels in zip(frames, sent, strict=True):
        assert frame.pixels.startswith(pack12(pixels))
    receiver.wait_for_total("n_repeated", 1)
    seen("both frames are complete, 1 packet repeated")


@pytest.mark.fault(
    fault="detector: bunch ids of a Jungfrau sent as integers",
    state="running",
    promise="counted and named with their sender, never in a frame",
)
def test_bunch_ids_that_are_no_double_are_named(make_module: MakeModule, seen: Callable[[str], None]) -> None:
    receiver = make_module("jungfrau-raw", 0)
    pixels = np.random.default_rng(6).integers(0, 2**16, (512, 1024), np.uint16)
    (integer,) = struct.unpack("<d", struct.pack("<Q", 18))
    receiver.send(*jungfrau_frame(1, pixels, integer)[:3], *jungfrau_frame(2, pixels, 17.0))
    (received,) = receiver.receive(1)
    assert (received.frame_id, received.n_missing, received.pixels) == (17, 0, pixels.tobytes())
    receiver.wait_for_total("n_bad_bunch_id", 3)
    receiver.service.wait_for_line(r"bunch_id: expected a double from 0 to 2\^64, got .*, from 127.0.0.1:\d+")
    seen("3 packets counted and named, the frame with a double is announced")


@pytest.mark.fault(
    fault="detector: a new scan of a GigaFRoST starts at a lower id",
    state="running",
    promise="its frames are announced at once",
)
def test_a_new_scan_restarts_the_ids(make_module: MakeModule, seen: Callable[[str], None]) -> None:
    receiver = make_module("gigafrost", 0, image_pixel_height=8, image_pixel_width=48)

    def packet(image_id: int, scan_id: int) -> bytes:
        payload = bytes([image_id]) * 72
        return gigafrost_packet(image_id, 0, payload, module=0, shape=(8, 48), scan_id=scan_id)

    for scan_id in (1, 2):
        receiver.send(packet(5, scan_id), packet(6, scan_id))
        frames = receiver.receive(2)
        found = [(frame.frame_id, int(frame.message["scan_id"])) for frame in frames]
        assert found == [(5, scan_id), (6, scan_id)]
    receiver.wait_for_total("n_restarts", 1)
    receiver.service.wait_for_line("the ids of module 0 restart")
    seen("the frames of both scans are announced once each")


@pytest.mark.fault(
    fault="network: links in the wrong ports for several periods",
    state="running",
    promise="the log names them once a period",
)
def test_links_in_the_wrong_ports_are_named_once_a_period(
    make_module: MakeModule, seen: Callable[[str], None]
) -> None:
    receiver = make_module("gigafrost", 3, image_pixel_height=8, image_pixel_width=48)

    def n_periods() -> int:
        """Return the number of statistics lines that count such packets."""
        return sum(bool(re.search(r"n_bad_quadrant=[1-9]", line)) for line in list(receiver.service.stdout))

    def are_three() -> bool:
        receiver.send(gigafrost_packet(1, 0, bytes(72), module=6, shape=(8, 48)))
        return n_periods() >= 3

    wait_until(are_three, 60.0, "three periods")
    assert receiver.service.end() == 0
    n_named = sum("quadrant: expected 1 in this port, got 3" in line for line in receiver.service.stdout)
    # The last period was not over.
    assert 3 <= n_periods() <= n_named <= n_periods() + 1
    seen(f"named {n_named} times")
