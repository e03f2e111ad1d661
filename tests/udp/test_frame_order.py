"""Frames that are late, arrive twice, or are the first after a restart of the ids."""

from __future__ import annotations

import numpy as np
import pytest
from support.peers.assembly_bench import (
    Bench,
    eiger,
    frames,
    gigafrost,
    payload,
    pixels8,
    small_gigafrost,
)
from support.peers.udp_detectors import (
    eiger_frame,
    gigafrost_frame,
    gigafrost_packet,
    jungfrau_frame,
)

from stddaq.udp.assembly import DOUBT_TIME_S
from stddaq.udp.frame_order import PAUSE_S

pytestmark = pytest.mark.usefixtures("all_ways")


def test_packets_of_a_lower_id_that_was_never_announced_are_late() -> None:
    bench, sent = eiger(), frames(1, 2, 5)
    bench.add(*sent[5], *sent[2][:31], *sent[1][1:])
    bench.assembly.close()
    assert bench.ids() == [5]
    assert bench.counts() == {"packets": 94, "late": 62, "frames": 1}


@pytest.mark.parametrize("first", [1, 50])
def test_ids_that_jump_back_by_more_than_the_ring_restart(first: int) -> None:
    bench, sent = eiger(), frames(first + 1001, first)
    bench.add(*sent[first + 1001], *sent[first])
    assert bench.ids() == [first + 1001, first]
    assert bench.missing() == [0, 0]
    assert bench.counts() == {"packets": 64, "frames": 2, "restarts": 1}


def test_an_acquisition_shorter_than_the_ring_may_be_followed_by_another() -> None:
    bench = eiger()
    for acquisition in range(3):
        for frame_id in (1, 2, 3):
            bench.add(*eiger_frame(frame_id, pixels8(), timestamp=1000 * acquisition + frame_id))
    assert bench.ids() == [1, 2, 3] * 3
    assert bench.counts() == {"packets": 288, "frames": 9, "restarts": 2}


def test_equal_frames_after_a_pause_are_another_acquisition() -> None:
    bench, sent = eiger(), frames(1, 2)
    bench.add(*sent[1], *sent[2])
    bench.now += 2 * PAUSE_S
    bench.add(*sent[1], *sent[2])
    assert bench.ids() == [1, 2, 1, 2]


def test_a_frame_that_arrives_twice_is_announced_once() -> None:
    bench, sent = eiger(), frames(1, 2)
    bench.add(*sent[1], *sent[2], *sent[2], *sent[1])
    bench.assembly.close()
    assert bench.ids() == [1, 2]
    assert bench.counts() == {"packets": 128, "late": 64, "frames": 2}


def test_a_new_scan_restarts_the_ids() -> None:
    bench = small_gigafrost()
    bench.add(gigafrost(5), gigafrost(6), gigafrost(5, 8), gigafrost(6, 8))
    assert bench.ids() == [5, 6, 5, 6]
    assert bench.counts() == {"packets": 4, "frames": 4, "restarts": 1}


def test_packets_of_the_scan_before_are_late() -> None:
    bench = small_gigafrost()
    bench.add(gigafrost(5), gigafrost(6), gigafrost(1, 8), gigafrost(6), gigafrost(2, 8))
    assert bench.ids() == [5, 6, 1, 2]
    assert bench.counts() == {"packets": 5, "late": 1, "frames": 4, "restarts": 1}


def test_frames_of_one_packet_that_step_back_are_late() -> None:
    bench = small_gigafrost()
    bench.add(gigafrost(5), gigafrost(7), gigafrost(6), gigafrost(5), gigafrost(8))
    assert bench.ids() == [5, 7, 8]
    assert bench.counts() == {"packets": 5, "late": 2, "frames": 3}


def test_a_bunch_id_that_stands_still_does_not_announce_an_image_twice() -> None:
    bench = Bench("jungfrau-raw")
    pixels = np.zeros((512, 1024), np.uint16)
    bench.add(*jungfrau_frame(1, pixels, 17.0)[:100], *jungfrau_frame(2, pixels, 17.0))
    bench.assembly.close()
    assert bench.ids() == [17]
    assert bench.counts()["late"] == 128


# A higher id, a much higher one, and lower ones, near and further back than the ring.
@pytest.mark.parametrize("wrong", [4500, 2**63, 3990, 3])
@pytest.mark.parametrize("n_packets", [1, 31])
def test_a_wrong_id_costs_no_other_frame_and_restarts_nothing(wrong: int, n_packets: int) -> None:
    bench, right = eiger(), range(4000, 4020)
    for frame_id, packets in frames(*right).items():
        bench.add(*packets[:16])
        if frame_id == 4007:
            bench.add(*eiger_frame(wrong, pixels8())[:n_packets])
        bench.now += 0.005
        bench.assembly.close_idle(bench.now)
        bench.add(*packets[16:])
        bench.now += 0.005
        bench.assembly.close_idle(bench.now)
    bench.assembly.close()
    assert bench.ids() == list(right)
    assert bench.counts() == {"packets": 640 + n_packets, "late": n_packets, "frames": 20}


@pytest.mark.parametrize("rate", [5.0, 100.0])
def test_a_wrong_id_between_two_frames_is_discarded_at_any_rate(rate: float) -> None:
    bench = eiger()
    for frame_id, packets in frames(*range(10, 30)).items():
        bench.add(*packets)
        if frame_id == 20:
            bench.add(eiger_frame(500, pixels8())[3])
        for _ in range(10):
            bench.now += 0.1 / rate
            bench.assembly.close_idle(bench.now)
    assert bench.ids() == list(range(10, 30))
    assert bench.counts() == {"packets": 641, "late": 1, "frames": 20}


@pytest.mark.parametrize(("wrong", "scan"), [(50, 7), (2**24 - 1, 7), (13, 8), (1, 8), (99, 6)])
def test_a_wrong_id_or_scan_in_a_frame_of_one_packet_costs_no_other_frame(wrong: int, scan: int) -> None:
    bench, right = small_gigafrost(), [2000 + i for i in range(20)]
    pixels = bytes(72)
    for frame_id in right:
        bench.add(gigafrost_packet(frame_id, 0, pixels, module=0, shape=(8, 48), scan_id=7))
        if frame_id == 2012:
            bench.add(gigafrost_packet(2000 + wrong, 0, pixels, module=0, shape=(8, 48), scan_id=scan))
        bench.now += 0.01
        bench.assembly.close_idle(bench.now)
    assert bench.ids() == right
    assert bench.counts() == {"packets": 21, "late": 1, "frames": 20}


def test_lost_frames_are_skipped_at_once_and_a_doubtful_one_leaves_after_a_while() -> None:
    bench, sent = eiger(), frames(1, 2, 50, 90)
    bench.add(*sent[1], *sent[2], *sent[50], *sent[90][:31])
    assert bench.ids() == [1, 2, 50]
    bench.now += 0.9 * DOUBT_TIME_S
    bench.assembly.close_idle(bench.now)
    assert bench.ids() == [1, 2, 50]
    bench.now += 0.2 * DOUBT_TIME_S
    bench.assembly.close_idle(bench.now)
    assert bench.missing() == [0, 0, 0, 1]


def test_frames_of_one_packet_through_one_of_two_sets_of_links_leave_at_once() -> None:
    bench = small_gigafrost()
    for frame_id in range(0, 20, 2):
        bench.add(gigafrost(frame_id))
        assert bench.ids() == list(range(0, frame_id + 1, 2))


def test_the_first_frame_of_a_restart_may_lack_packets() -> None:
    bench, sent = eiger(), frames(5000, 1, 2)
    bench.add(*sent[5000], *sent[1][1:], *sent[2])
    bench.assembly.close()
    assert list(zip(bench.ids(), bench.missing(), strict=True)) == [(5000, 0), (1, 1), (2, 0)]
    assert bench.counts()["restarts"] == 1


def test_a_scan_of_one_image_of_one_packet_leaves_after_a_while() -> None:
    bench = small_gigafrost()
    bench.add(gigafrost(5), gigafrost(0, 8))
    bench.now += 1.1 * DOUBT_TIME_S
    bench.assembly.close_idle(bench.now)
    assert bench.ids() == [5, 0]


@pytest.mark.parametrize("n_of_second", [1, 16, 31])
def test_no_frame_has_packets_of_two_acquisitions(n_of_second: int) -> None:
    bench, first, second = eiger(), pixels8(), pixels8()
    stopped = eiger_frame(1, first, timestamp=1000)[: 32 - n_of_second]
    started = eiger_frame(1, second, timestamp=1)
    bench.add(*stopped, *started[-n_of_second:])
    bench.assembly.close()
    (frame,) = bench.announced
    assert frame.n_missing == n_of_second
    assert frame.pixels == payload(eiger_frame(1, first), range(32 - n_of_second, 32))
    assert bench.counts()["late"] == n_of_second


def test_an_acquisition_may_end_in_a_frame_that_the_next_one_has_too() -> None:
    bench, first, second = eiger(), pixels8(), pixels8()
    bench.add(*eiger_frame(1, first, timestamp=1000)[:20])
    bench.add(*eiger_frame(1, second, timestamp=1), *eiger_frame(2, second, timestamp=2))
    assert bench.ids() == [1, 1, 2]
    assert bench.missing() == [12, 0, 0]
    assert bench.announced[1].pixels == second.tobytes()
    assert bench.counts() == {"packets": 84, "frames": 3, "corrupted": 1, "missing": 12, "restarts": 1}


def test_no_frame_has_packets_of_two_bunches() -> None:
    bench = Bench("jungfrau-raw")
    pixels = np.ones((512, 1024), np.uint16)
    bench.add(*jungfrau_frame(1, pixels, 17.0)[:100], *jungfrau_frame(1, pixels, 18.0)[100:])
    bench.assembly.close()
    assert list(zip(bench.ids(), bench.missing(), strict=True)) == [(17, 28), (18, 100)]


def test_a_scan_may_end_in_a_frame_that_the_next_one_has_too() -> None:
    bench = Bench("gigafrost", image_pixel_height=2016, image_pixel_width=2016)
    first, second = (
        gigafrost_frame(
            5, np.full((504, 1008), value, np.uint16), module=0, shape=(2016, 2016), rows=4, scan_id=value
        )
        for value in (1, 2)
    )
    bench.add(*first[:100], *second)
    bench.assembly.close()
    assert bench.ids() == [5, 5]
    assert bench.missing() == [26, 0]


def test_frames_of_a_scan_that_restarts_with_its_number_are_late_until_the_ids_are_new() -> None:
    bench = Bench("gigafrost", image_pixel_height=2016, image_pixel_width=2016)

    def frame(frame_id: int, value: int) -> list[bytes]:
        pixels = np.full((504, 1008), value, np.uint16)
        return gigafrost_frame(frame_id, pixels, module=0, shape=(2016, 2016), rows=4, scan_id=7)

    for frame_id, value in ((5, 1), (6, 1), (7, 1), (5, 2), (6, 2), (7, 2), (8, 2)):
        bench.now += 1.0
        bench.add(*frame(frame_id, value))
    assert bench.ids() == [5, 6, 7, 8]
    assert [each.pixels[:3] for each in bench.announced] == [b"\1\x10\0"] * 3 + [b"\2\x20\0"]
    assert bench.counts() == {"packets": 7 * 126, "late": 3 * 126, "frames": 4}
