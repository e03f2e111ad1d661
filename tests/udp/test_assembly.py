"""Frames from packets, fed one by one or in batches: pixels in their places, account exact to the packet."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from support.peers.assembly_bench import (
    RANDOM,
    Bench,
    eiger,
    frames,
    payload,
)
from support.peers.udp_detectors import (
    gigafrost_frame,
    jungfrau_frame,
)

from stddaq.udp.geometry import GigaFrostGeometry

pytestmark = pytest.mark.usefixtures("all_ways")


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 7, 32, 100])
def test_every_pixel_is_in_its_place_whatever_the_batches(batch: int) -> None:
    bench, sent = eiger(), frames(3, 4, 5, 1003)
    packets = [packet for frame in sent.values() for packet in frame]
    for i in range(0, len(packets), batch):
        bench.add(*packets[i : i + batch])
    assert bench.ids() == [3, 4, 5, 1003]
    assert [frame.pixels for frame in bench.announced] == [payload(frame) for frame in sent.values()]
    assert bench.counts() == {"packets": 128, "frames": 4}


@pytest.mark.parametrize(
    "shape",
    [(8, 48), (2016, 2016), (280, 528), (128, 480), (252, 504), (252, 528), (4, 72), (100, 240)],
    ids=str,
)
@pytest.mark.parametrize("module", [0, 3, 13])
def test_gigafrost_rows_are_in_their_places_without_padding(shape: tuple[int, int], module: int) -> None:
    bench = Bench("gigafrost", module, image_pixel_height=shape[0], image_pixel_width=shape[1])
    geometry = GigaFrostGeometry.of(*shape)
    pixels = RANDOM.integers(1, 4096, (geometry.module_height, geometry.module_width), np.uint16)
    packets = gigafrost_frame(5, pixels, module=module, shape=shape, rows=geometry.rows)
    assert len(packets) == geometry.n_packets
    order = RANDOM.permutation(len(packets))
    bench.add(*(packets[i] for i in order))
    (frame,) = bench.announced
    packed = np.frombuffer(frame.pixels[: geometry.pixel_bytes], np.uint8).reshape(-1, 3).astype(int)
    first, second = packed[:, 0] | (packed[:, 1] & 15) << 8, packed[:, 1] >> 4 | packed[:, 2] << 4
    np.testing.assert_array_equal(np.stack([first, second], 1).reshape(pixels.shape), pixels)
    assert bench.counts() == {"packets": len(packets), "frames": 1}


def test_jungfrau_frames_have_the_bunch_id_as_id() -> None:
    bench = Bench("jungfrau-raw")
    pixels = RANDOM.integers(0, 2**16, (512, 1024), np.uint16)
    bench.add(*jungfrau_frame(100, pixels, 17.0), *jungfrau_frame(101, pixels, 2.0**40))
    assert bench.ids() == [17, 2**40]
    assert bench.announced[0].pixels == pixels.tobytes()


@pytest.mark.parametrize("lost", [0, 15, 31])
def test_what_was_not_received_is_0_and_counted(lost: int) -> None:
    bench, sent = eiger(), frames(1, 2, 3)
    del sent[1][lost]
    whole = frames(1)[1]
    bench.add(*sent[1], *sent[2], *sent[3])
    assert bench.ids() == [1, 2, 3]
    assert bench.missing() == [1, 0, 0]
    expected = list(sent[1])
    expected.insert(lost, bytes(48 + 4096))
    assert bench.announced[0].pixels == b"".join(packet[48:] for packet in expected)
    assert len(whole) == 32
    assert bench.counts() == {"packets": 95, "frames": 3, "corrupted": 1, "missing": 1}


@pytest.mark.parametrize("module", [0, 7])
@pytest.mark.parametrize("lost", [0, 1, 3])
def test_gigafrost_rows_that_were_not_received_are_0(module: int, lost: int) -> None:
    shape = (252, 504)
    bench = Bench("gigafrost", module, image_pixel_height=shape[0], image_pixel_width=shape[1])
    geometry = GigaFrostGeometry.of(*shape)
    pixels = np.full((geometry.module_height, geometry.module_width), 4095, np.uint16)
    packets = gigafrost_frame(5, pixels, module=module, shape=shape, rows=geometry.rows)
    del packets[lost]
    bench.add(*packets)
    bench.assembly.close()
    (frame,) = bench.announced
    rows = np.frombuffer(frame.pixels[: geometry.pixel_bytes], np.uint8).reshape(geometry.module_height, -1)
    is_lost = np.arange(geometry.module_height) // geometry.rows == lost
    assert (rows[is_lost] == 0).all()
    assert (rows[~is_lost] == 255).all()
    assert frame.n_missing == 1


def test_a_repeated_packet_counts_once() -> None:
    bench, sent = eiger(), frames(1)[1]
    bench.add(*sent[:10], *sent[5:10], sent[9], *sent[10:31])
    assert bench.announced == []
    bench.add(sent[31])
    assert bench.missing() == [0]
    assert bench.announced[0].pixels == payload(sent)
    assert bench.counts() == {"packets": 38, "repeated": 6, "frames": 1}


@pytest.mark.parametrize("is_last", [True, False])
def test_a_packet_of_another_module_does_not_replace_one_that_has_arrived(is_last: bool) -> None:
    bench, (before, sent, others) = eiger(), frames(2, 3, 4).values()
    # A cable in the wrong port: the same frame and number, other pixels.
    wrong = [packet[:48] + other[48:] for packet, other in zip(sent, others, strict=True)]
    bench.add(*before)
    place = 32 if is_last else 20
    bench.add(*sent[:10])
    bench.add(*sent[10:place], wrong[5], wrong[12], *sent[place:])
    assert (bench.ids(), bench.missing()) == ([2, 3], [0, 0])
    assert bench.announced[1].pixels == payload(sent)


def test_one_lost_and_one_repeated_packet_make_one_missing() -> None:
    bench, sent = eiger(), frames(1)[1]
    bench.add(*sent[:20], sent[3], *sent[21:])
    bench.assembly.close()
    assert bench.missing() == [1]
    assert bench.announced[0].pixels == payload(sent, lost=[20])


def test_packets_of_one_frame_may_arrive_in_any_order() -> None:
    bench, sent = eiger(), frames(1)[1]
    bench.add(*(sent[i] for i in RANDOM.permutation(32)))
    assert bench.missing() == [0]
    assert bench.announced[0].pixels == payload(sent)


def test_packets_of_two_frames_may_be_mixed() -> None:
    bench, sent = eiger(), frames(1, 2)
    bench.add(*sent[1][:30], *sent[2][:5], sent[1][31], *sent[2][5:], sent[1][30])
    assert bench.ids() == [1, 2]
    assert bench.missing() == [0, 0]
    assert [frame.pixels for frame in bench.announced] == [payload(sent[1]), payload(sent[2])]
    assert bench.counts() == {"packets": 64, "frames": 2}


def faulty(sent: list[list[bytes]], random: np.random.Generator) -> list[bytes]:
    """Return the packets of all frames, some of them lost, repeated, exchanged, or not valid."""
    packets: list[bytes] = []
    for packet in itertools.chain.from_iterable(sent):
        fault = random.integers(0, 40)
        if fault == 0:
            continue
        packets.append(packet[:-1] if fault == 1 else b"\1" + packet[1:] if fault == 2 else packet)
        if fault == 3:
            packets.append(packet)
        if fault == 4 and len(packets) > 1:
            packets[-2:] = reversed(packets[-2:])
    return packets


@pytest.mark.parametrize("seed", range(12))
# 32 packets, 30 with padding, and 4.
@pytest.mark.parametrize("shape", [(504, 2016), (2016, 504), (252, 528)], ids=str)
def test_batches_that_continue_a_frame_are_added_as_any_others(shape: tuple[int, int], seed: int) -> None:
    random = np.random.default_rng(seed)
    geometry = GigaFrostGeometry.of(*shape)
    keys = {"image_pixel_height": shape[0], "image_pixel_width": shape[1]}
    bench, reference = Bench("gigafrost", 0, **keys), Bench("gigafrost", 0, **keys)
    reference.assembly._continue = lambda *_: False  # pyright: ignore[reportAttributeAccessIssue]
    pixels = random.integers(1, 4096, (geometry.module_height, geometry.module_width), np.uint16)
    sent = [gigafrost_frame(i, pixels, module=0, shape=shape, rows=geometry.rows) for i in range(12)]
    packets, first = faulty(sent, random), 0
    while first < len(packets):
        n = int(random.integers(1, geometry.n_packets))
        for each in (bench, reference):
            each.add(*packets[first : first + n])
            each.now += 0.0001
        first += n
    for each in (bench, reference):
        each.assembly.close()
    assert bench.announced == reference.announced
    assert bench.counts() == reference.counts()


@pytest.mark.parametrize("lost", [None, 3])
def test_a_frame_that_arrives_in_small_batches_is_complete_only_with_all_packets(lost: int | None) -> None:
    bench, sent = eiger(), frames(1)[1]
    packets = [packet for i, packet in enumerate(sent) if i != lost]
    for i in range(0, len(packets), 4):
        bench.add(*packets[i : i + 4])
    bench.assembly.close()
    assert bench.missing() == [0 if lost is None else 1]
    assert bench.announced[0].pixels == payload(sent, [] if lost is None else [lost])


@pytest.mark.parametrize("n_repeated", [1, 2])
def test_a_repeated_last_packet_that_is_shorter_counts_once(n_repeated: int) -> None:
    bench = Bench("gigafrost", 0, image_pixel_height=252, image_pixel_width=528)
    pixels = RANDOM.integers(0, 4096, (63, 264), np.uint16)
    packets = gigafrost_frame(1, pixels, module=0, shape=(252, 528), rows=18)
    bench.add(*packets[1:], *packets[-1:] * n_repeated)
    bench.add(packets[0])
    assert bench.missing() == [0]
    assert bench.counts() == {"packets": 4 + n_repeated, "repeated": n_repeated, "frames": 1}


def test_a_packet_repeated_after_exchanged_ones_counts_once() -> None:
    bench, sent = eiger(), frames(1)[1]
    bench.add(sent[0], sent[2], sent[1])
    bench.add(sent[2], sent[3])
    bench.add(*sent[4:])
    assert bench.announced[0].pixels == payload(sent)
    assert bench.counts() == {"packets": 33, "repeated": 1, "frames": 1}
