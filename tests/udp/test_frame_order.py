"""Frames that are late, arrive twice, or are the first after a restart of the ids."""

from __future__ import annotations

import numpy as np
import pytest
from support.peers.assembly_bench import (
    Bench,
    eiger,
    frames,
    gigafrost,
    pixels8,
    small_gigafrost,
)
from support.peers.udp_detectors import (
    eiger_frame,
    jungfrau_frame,
)

from stddaq.udp.frame_order import PAUSE_S


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
