"""The times at which a flush is due, with a fake clock."""

from __future__ import annotations

from itertools import pairwise

import pytest

from stddaq.writing.writer.flush_schedule import (
    FAST_WAIT_S,
    FLUSH_PERIOD_S,
    FLUSH_SHARE,
    FLUSH_SPACING_S,
    LAST_REPORT_S,
    LONG_PAUSE_S,
    QUIET_S,
    REPORT_SPACING_S,
    FlushSchedule,
    ReportSchedule,
)


class FakeClock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def schedule(clock: FakeClock) -> FlushSchedule:
    """Return the schedule of a stream that does not pause."""
    made = FlushSchedule(clock)
    made.recorded()
    made.cancel()
    made.recorded()
    made.cancel()
    return made


def test_without_recorded_images_no_flush_is_due(schedule: FlushSchedule):
    assert schedule.due_in is None


def test_images_become_visible_when_the_stream_pauses(schedule: FlushSchedule, clock: FakeClock):
    schedule.recorded()
    assert schedule.due_in == pytest.approx(QUIET_S)
    clock.now += QUIET_S + 1e-6
    assert schedule.due_in == 0.0


def test_the_first_image_after_a_long_pause_becomes_visible_at_once(
    schedule: FlushSchedule, clock: FakeClock
):
    for _ in range(3):
        clock.now += 2 * LONG_PAUSE_S
        schedule.recorded()
        assert schedule.due_in == 0.0
        schedule.flushed(images_remain=False)
        assert schedule.due_in is None


def test_the_images_after_the_first_one_of_a_burst_are_flushed_when_it_ends(
    schedule: FlushSchedule, clock: FakeClock
):
    clock.now += 2 * LONG_PAUSE_S
    schedule.recorded()
    schedule.flushed(images_remain=False)
    schedule.recorded()
    assert schedule.due_in == pytest.approx(QUIET_S)


def test_an_image_that_stays_invisible_after_its_flush_is_flushed_again(
    schedule: FlushSchedule, clock: FakeClock
):
    clock.now += 2 * LONG_PAUSE_S
    schedule.recorded()
    schedule.flushed(images_remain=True)
    assert schedule.due_in == pytest.approx(QUIET_S)


def test_a_steady_stream_is_flushed_once_per_period(schedule: FlushSchedule, clock: FakeClock):
    schedule.recorded()
    began = clock.now
    while schedule.due_in != 0.0:
        clock.now += QUIET_S / 2
        schedule.recorded()
    assert clock.now - began == pytest.approx(FLUSH_PERIOD_S, abs=QUIET_S)


def test_flushes_keep_their_spacing_when_the_stream_pauses_often(schedule: FlushSchedule, clock: FakeClock):
    schedule.recorded()
    schedule.flushed(images_remain=False)
    schedule.recorded()
    assert schedule.due_in == pytest.approx(FLUSH_SPACING_S)


def test_pauses_of_the_loop_are_not_pauses_of_the_stream(schedule: FlushSchedule):
    schedule.batching_pause = 0.004
    schedule.recorded()
    assert schedule.due_in == pytest.approx(QUIET_S + 0.004)


def test_images_that_remain_after_a_flush_are_flushed_again(schedule: FlushSchedule, clock: FakeClock):
    schedule.recorded()
    schedule.flushed(images_remain=True)
    assert schedule.due_in == pytest.approx(FLUSH_SPACING_S)
    clock.now += FLUSH_SPACING_S + 1e-6
    assert schedule.due_in == 0.0


def test_nothing_is_due_after_a_flush_or_a_close(schedule: FlushSchedule):
    schedule.recorded()
    schedule.flushed(images_remain=False)
    assert schedule.due_in is None
    schedule.recorded()
    schedule.cancel()
    assert schedule.due_in is None


def flush_batches(schedule: FlushSchedule, clock: FakeClock, *, flush_s: float) -> list[float]:
    """Record a batch every 12 ms for a second, each flush taking `flush_s`. Return the times of flushes."""
    schedule.batching_pause = 0.004
    flushes, end = [], clock.now + 1.0
    batch_at = clock.now
    while clock.now < end:
        batch_at += 0.012
        clock.now = max(clock.now, batch_at)
        schedule.recorded()
        if schedule.due_in == 0.0:
            clock.now += flush_s
            schedule.flushed(images_remain=False, seconds=flush_s)
            flushes.append(clock.now)
    return flushes


def test_each_batch_of_a_fast_stream_becomes_visible_at_once(schedule: FlushSchedule, clock: FakeClock):
    assert len(flush_batches(schedule, clock, flush_s=0.0004)) == pytest.approx(1.0 / 0.012, abs=2)


@pytest.mark.parametrize("flush_s", [0.001, 0.004, 0.008])
def test_slow_flushes_of_a_fast_stream_take_a_small_share_of_the_time(
    schedule: FlushSchedule, clock: FakeClock, flush_s: float
):
    flushes = flush_batches(schedule, clock, flush_s=flush_s)
    assert len(flushes) >= 3
    assert len(flushes) * flush_s <= FLUSH_SHARE * 1.1


def test_images_of_a_stream_without_pauses_wait_a_short_time(schedule: FlushSchedule, clock: FakeClock):
    schedule.batching_pause = 0.001
    pending_since, longest = clock.now, 0.0
    for _ in range(1000):
        clock.now += 0.001
        schedule.recorded()
        if schedule.due_in == 0.0:
            longest, pending_since = max(longest, clock.now - pending_since), clock.now
            schedule.flushed(images_remain=False, seconds=0.0002)
    assert longest <= FAST_WAIT_S + 0.0021


def test_one_interrupted_flush_does_not_delay_the_next_one(schedule: FlushSchedule, clock: FakeClock):
    flush_batches(schedule, clock, flush_s=0.0002)
    schedule.flushed(images_remain=False, seconds=0.05)
    clock.now += 0.012
    schedule.recorded()
    assert schedule.due_in == 0.0


def test_images_of_a_fast_stream_wait_no_longer_than_a_period_for_a_slow_flush(
    schedule: FlushSchedule, clock: FakeClock
):
    flushes = flush_batches(schedule, clock, flush_s=0.05)
    assert max(after - before for before, after in pairwise(flushes)) <= FLUSH_PERIOD_S + 0.05 + 0.012 + 1e-6


def test_a_slow_flush_does_not_delay_the_images_of_a_slow_stream(schedule: FlushSchedule, clock: FakeClock):
    for _ in range(3):
        clock.now += 2 * LONG_PAUSE_S
        schedule.recorded()
        assert schedule.due_in == 0.0
        schedule.flushed(images_remain=False, seconds=0.05)


def test_each_flush_of_a_slow_stream_is_reported(clock: FakeClock):
    reports = ReportSchedule(clock)
    assert reports.due_in == float("inf")
    for _ in range(3):
        reports.flushed(is_fast=False)
        assert reports.due_in == 0.0
        reports.sent()
        assert reports.due_in == float("inf")
        clock.now += 0.1 * REPORT_SPACING_S


def test_flushes_of_a_fast_stream_are_reported_at_a_distance_and_the_last_one_after_a_while(clock: FakeClock):
    reports, sent = ReportSchedule(clock), 0
    for _ in range(10):
        reports.flushed(is_fast=True)
        if not reports.due_in:
            reports.sent()
            sent += 1
        clock.now += 0.6 * REPORT_SPACING_S
        assert reports.due_in > 0.0
    assert sent == 5
    clock.now += LAST_REPORT_S
    assert reports.due_in == 0.0
    reports.cancel()
    assert reports.due_in == float("inf")
