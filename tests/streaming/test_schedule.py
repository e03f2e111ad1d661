"""The images that a live stream sends."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stddaq.config.schema import live_stream_setting
from stddaq.streaming.schedule import Schedule, schedule_of


def schedule(kind: str, *numbers: float) -> Schedule:
    return schedule_of(live_stream_setting({"type": kind, "config": list(numbers)}))


def taken(of: Schedule, ids: range, rate: float) -> list[int]:
    """Return the ids that the schedule takes when images arrive at `rate`."""
    return [image_id for n, image_id in enumerate(ids) if of.takes(image_id, 100 + n / rate)]


def test_forward_takes_every_image() -> None:
    assert taken(schedule("forward"), range(5, 50), rate=10) == list(range(5, 50))


def test_batch_takes_consecutive_ids_of_every_n() -> None:
    assert taken(schedule("batch", 2, 5), range(3, 13), rate=10) == [5, 6, 10, 11]


def test_batch_of_all_is_all() -> None:
    assert taken(schedule("batch", 7, 7), range(20), rate=10) == list(range(20))


@given(st.integers(1, 2**31 - 1), st.integers(1, 2**31 - 1), st.integers(0, 2**64 - 1))
def test_batch_goes_by_the_id_alone(a: int, b: int, image_id: int) -> None:
    count, every = min(a, b), max(a, b)
    assert schedule("batch", count, every).takes(image_id, 0.0) == (image_id % every < count)


def test_periodic_takes_consecutive_images_at_its_frequency() -> None:
    # 100 Hz for 2 s, three images four times a second.
    ids = taken(schedule("periodic", 3, 4), range(200), rate=100)
    assert ids == [first + i for first in range(0, 200, 25) for i in range(3)]


def test_periodic_may_be_slower_than_once_a_second() -> None:
    assert taken(schedule("periodic", 1, 0.5), range(1000), rate=100) == [0, 200, 400, 600, 800]


def test_periodic_keeps_its_frequency_when_it_does_not_divide_the_rate() -> None:
    ids = taken(schedule("periodic", 1, 7), range(10_000), rate=100)
    assert len(ids) == pytest.approx(700, abs=1)


def test_periodic_takes_all_images_of_a_slow_source() -> None:
    assert taken(schedule("periodic", 1, 50), range(30), rate=10) == list(range(30))


def test_periodic_does_not_make_up_for_a_pause() -> None:
    periodic = schedule("periodic", 1, 10)
    assert periodic.takes(0, 0.0)
    after = [periodic.takes(i, 60 + i / 1000) for i in range(100)]
    assert after.count(True) == 1
