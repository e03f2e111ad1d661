"""When a frame leaves that lacks packets, and what is late then."""

from __future__ import annotations

import pytest
from support.peers.assembly_bench import (
    Bench,
    eiger,
    frames,
    payload,
)

from stddaq.udp.assembly import IDLE_TIME_S
from stddaq.udp.frame_pace import UNKNOWN_PERIOD_S
from stddaq.udp.frame_ring import FRAME_SLOTS

pytestmark = pytest.mark.usefixtures("all_ways")


def test_a_frame_that_lacks_packets_leaves_with_the_second_frame_after_it() -> None:
    bench, sent = eiger(), frames(1, 2, 3)
    bench.add(*sent[1][:31], *sent[2])
    assert bench.ids() == []
    bench.add(sent[3][0])
    assert bench.ids() == [1, 2]
    assert bench.missing() == [1, 0]


def test_the_last_frame_of_a_burst_leaves_after_the_idle_time() -> None:
    bench, sent = eiger(), frames(1)
    bench.add(*sent[1][:31])
    idle_time = IDLE_TIME_S + UNKNOWN_PERIOD_S
    assert bench.assembly.idle_in(bench.now) == pytest.approx(idle_time, abs=0.2)
    bench.assembly.close_idle(bench.now + bench.assembly.idle_time - 0.001)
    assert bench.ids() == []
    bench.assembly.close_idle(bench.now + bench.assembly.idle_time + 0.001)
    assert bench.missing() == [1]
    assert bench.announced[0].pixels == payload(sent[1], lost=[31])
    assert bench.assembly.idle_in(bench.now) is None


def test_the_idle_time_follows_the_frame_period() -> None:
    bench = eiger()
    for frame_id, packets in frames(*range(1, 20)).items():
        bench.now += 0.002
        bench.add(*packets)
        assert bench.ids()[-1] == frame_id
    assert bench.assembly.idle_time == pytest.approx(0.012)


def test_a_stated_idle_time_holds() -> None:
    assert Bench("eiger", bit_depth=8, idle_time=0.5).assembly.idle_time == 0.5


def test_frames_that_need_the_same_slot_leave_in_order() -> None:
    bench, sent = eiger(), frames(1, 1 + FRAME_SLOTS)
    bench.add(*sent[1][:31], *sent[1 + FRAME_SLOTS])
    assert bench.ids() == [1, 1 + FRAME_SLOTS]
    assert bench.announced[0].pixels == payload(sent[1], lost=[31])
    assert bench.announced[1].pixels == payload(sent[1 + FRAME_SLOTS])


def test_packets_of_a_frame_that_has_left_are_late() -> None:
    bench, sent = eiger(), frames(1, 2)
    bench.add(*sent[1], sent[1][31], *sent[2], sent[1][0], sent[2][7])
    bench.now += IDLE_TIME_S
    bench.add(sent[1][4])
    bench.assembly.close()
    assert bench.ids() == [1, 2]
    assert bench.counts() == {"packets": 68, "late": 4, "frames": 2}


def test_packets_of_a_complete_frame_that_waits_for_the_one_before_are_late() -> None:
    bench, sent = eiger(), frames(1, 2)
    bench.add(*sent[1][:31], *sent[2], sent[2][5])
    bench.add(sent[2][31], sent[2][31])
    bench.add(sent[1][31])
    assert bench.missing() == [0, 0]
    assert bench.counts() == {"packets": 67, "late": 3, "frames": 2}


def test_the_packets_that_a_frame_lacks_are_expected_at_the_pace_of_those_it_has() -> None:
    bench, (sent, *_) = eiger(), frames(1).values()
    bench.add(*sent[:4])
    assert bench.assembly.complete_in(bench.now) == 0
    bench.now += 0.004
    bench.add(*sent[4:16])
    assert bench.assembly.complete_in(bench.now) == pytest.approx(16 * 0.00025)
    assert bench.assembly.next_takes == 0
    bench.add(*sent[16:])
    assert bench.assembly.next_takes == pytest.approx(32 * 0.00025, rel=0.1)


def test_a_frame_is_expected_to_take_less_time_each_time_that_one_was_complete_at_once() -> None:
    bench, (sent, *more) = eiger(), frames(*range(1, 12)).values()
    bench.add(*sent[:16])
    bench.now += 0.004
    bench.add(*sent[16:30])
    assert bench.assembly.complete_in(bench.now) == pytest.approx(0.004 / 15)
    bench.add(*sent[30:])
    for packets in more:
        bench.add(*packets)
    assert bench.assembly.next_takes < 0.004 * 32 / 30 / 1.5


def test_no_packet_is_expected_before_the_next_frame() -> None:
    bench = eiger()
    for packets in frames(*range(1, 12)).values():
        bench.now += 0.002
        bench.add(*packets)
    assert bench.assembly.complete_in(bench.now + 0.0019) is None
    assert bench.assembly.complete_in(bench.now + 0.0021) == 0
