"""The times at which images are due, with a fake clock."""

from __future__ import annotations

import pytest

from stddaq.sources.pacer import UNLIMITED, Pacer


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_first_image_of_a_schedule_is_due_at_once_and_the_second_one_period_later(clock: Clock) -> None:
    pacer = Pacer(rate=0.5, clock=clock)
    assert pacer.due() == 1
    pacer.advance(1)
    assert (pacer.due(), pacer.delay(1)) == (0, 2.0)
    clock.now += 2
    assert (pacer.due(), pacer.delay(1)) == (1, 0.0)


def test_without_a_rate_images_are_always_due(clock: Clock) -> None:
    pacer = Pacer(rate=0, clock=clock)
    assert (pacer.due(), pacer.delay(5)) == (UNLIMITED, 0.0)


def test_delayed_images_are_caught_up_so_that_the_rate_does_not_drift(clock: Clock) -> None:
    pacer = Pacer(rate=1000, clock=clock)
    n_published = 0
    for delay in (0.0105, 0.5, 0.003, 0.25) * 10:
        clock.now += delay
        n = pacer.due()
        pacer.advance(n)
        n_published += n
    elapsed = clock.now - 1000.0
    assert n_published == pytest.approx(elapsed * 1000 + 1, abs=1)
    assert pacer.n_dropped == 0


def test_source_that_was_stopped_for_seconds_catches_up_one_second_only(clock: Clock) -> None:
    pacer = Pacer(rate=1000, clock=clock)
    clock.now += 4
    assert pacer.due() == pytest.approx(1000, abs=2)
    assert pacer.n_dropped == pytest.approx(3000, abs=2)


def test_images_of_a_millisecond_are_published_together(clock: Clock) -> None:
    pacer = Pacer(rate=10_000, clock=clock)
    pacer.advance(pacer.due())
    assert pacer.delay(1000) == pytest.approx(0.001)
    assert pacer.delay(1) == pytest.approx(0.0001)


def test_next_image_after_a_change_of_rate_is_due_one_new_period_after_the_last(clock: Clock) -> None:
    pacer = Pacer(rate=0.01, clock=clock)
    pacer.advance(pacer.due())
    clock.now += 0.5
    pacer.set_rate(0.5)
    assert pacer.delay(1) == 1.5


def test_new_schedule_starts_now(clock: Clock) -> None:
    pacer = Pacer(rate=1, clock=clock)
    pacer.advance(5)
    clock.now += 100
    pacer.restart()
    assert (pacer.due(), pacer.n_dropped) == (1, 0)
