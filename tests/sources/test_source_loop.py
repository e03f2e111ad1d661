from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stddaq.sources.source_loop import ImageIds, Pacer
from stddaq.wire.simulator_messages import RequestError, parse_request


@given(st.integers(0, 50), st.integers(1, 60), st.none() | st.integers(2, 12), st.integers(0, 200))
def test_ids_are_counted_with_gaps_and_start_again_after_the_last(
    first: int, n_ids: int, skip_every: int | None, position: int
) -> None:
    ids = ImageIds(first, first + n_ids - 1, skip_every)
    one_pass = [first + k for k in range(n_ids) if not skip_every or (k + 1) % skip_every]
    assert ids.per_pass == len(one_pass)
    assert ids[position] == one_pass[position % len(one_pass)]


def test_listed_ids_are_used_in_their_order() -> None:
    ids = ImageIds(listed=np.array([5, 9, 2**64 - 1], np.uint64))
    assert [ids[k] for k in range(4)] == [5, 9, 2**64 - 1, 5]


def test_first_image_of_a_schedule_is_due_at_once_and_the_second_is_not() -> None:
    pacer = Pacer(rate=0.1)
    assert pacer.due() == 1
    pacer.advance(1)
    assert pacer.due() == 0
    assert 9 < pacer.delay(1) <= 10


def test_late_images_are_caught_up_so_that_the_rate_does_not_drift() -> None:
    pacer = Pacer(rate=1000)
    begin = time.monotonic()
    published = 0
    while (elapsed := time.monotonic() - begin) < 0.5:
        n = pacer.due()
        pacer.advance(n)
        published += n
        time.sleep(0.0105)
    assert published == pytest.approx(elapsed * 1000, rel=0.05)


def test_source_that_was_held_up_for_long_does_not_burst() -> None:
    pacer = Pacer(rate=1e6)
    pacer.advance(pacer.due() - 4_000_000)  # Four seconds late.
    assert pacer.due() <= 1.1e6
    assert pacer.n_dropped == pytest.approx(3e6, rel=0.1)


def test_next_image_after_a_change_of_rate_is_one_new_period_after_the_last() -> None:
    pacer = Pacer(rate=0.01)
    pacer.advance(pacer.due())
    pacer.set_rate(0.5)
    assert 1.5 < pacer.delay(1) <= 2


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"", "no JSON"),
        (b"\xff\xfe", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"[]", "expected a JSON object, got \\[\\]"),
        (b"5", "got 5"),
        (b"{}", "command: expected one of trigger, configure.*, got nothing"),
        (b'{"command": 7}', "command: expected .*, got 7"),
        (b'{"command": []}', "command: expected .*, got \\[\\]"),
        (b'{"command": "fire"}', 'command: expected .*, got "fire"'),
        (b'{"command": "trigger", "n_images": 0}', "n_images: expected .*, got 0"),
        (b'{"command": "trigger", "n_images": "3"}', 'n_images: expected .*, got "3"'),
        (b'{"command": "trigger", "n_images": true}', "n_images: expected .*, got true"),
        (b'{"command": "trigger", "images": 3}', "images: unknown field"),
        (b'{"command": "configure", "rate": -1}', "rate: expected .*, got -1"),
        (b'{"command": "configure", "rate": NaN}', "rate: expected .*, got NaN"),
        (b'{"command": "configure", "rate": 1e999}', "rate: expected .*, got Infinity"),
        (b'{"command": "configure", "burst": 1.5}', "burst: expected .*, got 1.5"),
        (b'{"command": "rearm", "first_id": -1}', "first_id: expected .*, got -1"),
        (
            b'{"command": "rearm", "first_id": 18446744073709551616}',
            "first_id: expected .*, got 18446744073709551616",
        ),
    ],
)
def test_request_that_makes_no_sense_is_explained(message: bytes, reason: str) -> None:
    with pytest.raises(RequestError, match=reason):
        parse_request(message)
