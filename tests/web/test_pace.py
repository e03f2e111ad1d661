"""Which image a browser gets next: `Pace`, fed with images, acknowledgements and times."""

from __future__ import annotations

from typing import Any

import pytest

from stddaq.web.live.pace import ACKNOWLEDGE_TIMEOUT_S, Pace, Picture


def picture(image: Any) -> Picture:
    return Picture({"v": 1, "image": image}, memoryview(b"pixels"))


def sent(pace: Pace, now: float) -> tuple[Any, int] | None:
    """Return the image that goes now, and how many the browser skipped before it."""
    taken = pace.take(now)
    if taken is None:
        return None
    assert bytes(taken.payload) == b"pixels"
    return taken.header["image"], taken.header["skipped"]


def test_next_image_goes_after_the_last_was_acknowledged_and_is_the_newest() -> None:
    pace = Pace()
    assert sent(pace, 0) is None
    pace.offer(picture(1))
    assert sent(pace, 0) == (1, 0)
    for image in (2, 3, 4):
        pace.offer(picture(image))
    assert sent(pace, 0.05) is None
    pace.acknowledge(1, 0.06)
    assert sent(pace, 0.06) == (4, 2)
    assert (pace.counts.n_sent, pace.counts.n_skipped) == (2, 2)


def test_two_images_are_on_a_long_way() -> None:
    pace = Pace()
    pace.offer(picture(1))
    assert sent(pace, 0) == (1, 0)
    pace.acknowledge(1, 0.2)
    for image in (2, 3, 4):
        pace.offer(picture(image))
        assert sent(pace, 0.3) == (None if image == 4 else (image, 0))
    pace.acknowledge(3, 0.5)
    assert sent(pace, 0.5) == (4, 0)


def test_slow_browser_on_a_short_way_gets_no_second_image_to_wait_there() -> None:
    pace = Pace()
    for image in range(1, 6):
        pace.offer(picture(image))
        assert sent(pace, image) == (image, 0)
        pace.offer(picture(-image))
        assert sent(pace, image + 0.3) is None
        pace.acknowledge(image, image + 0.4, busy_s=0.35)
        assert sent(pace, image + 0.4) == (-image, 0)
        pace.acknowledge(-image, image + 0.8, busy_s=0.35)


@pytest.mark.parametrize("wrong", [2, "1", None, [], {}, 1e400, True])
def test_wrong_acknowledgements_let_nothing_pass(wrong: Any) -> None:
    pace = Pace()
    for image in (0, 1):
        pace.offer(picture("18446744073709551615" if image == 0 else 5))
        if image == 0:
            assert sent(pace, 0) == ("18446744073709551615", 0)
    pace.acknowledge(wrong, 0.1)
    assert sent(pace, 0.1) is None
    pace.acknowledge("18446744073709551615", 0.1)
    assert sent(pace, 0.1) == (5, 0)


def test_rate_is_limited_as_the_browser_asks() -> None:
    pace = Pace(max_hz=2)
    pace.offer(picture(1))
    assert sent(pace, 0) == (1, 0)
    pace.acknowledge(1, 0.01)
    pace.offer(picture(2))
    assert pace.due_in(0.1) == pytest.approx(0.4)
    assert sent(pace, 0.1) is None
    assert sent(pace, 0.5) == (2, 0)


def test_browser_that_never_acknowledges_is_silent() -> None:
    pace = Pace()
    pace.offer(picture(1))
    assert sent(pace, 0) == (1, 0)
    assert not pace.is_silent(ACKNOWLEDGE_TIMEOUT_S)
    assert pace.is_silent(ACKNOWLEDGE_TIMEOUT_S + 1)
    pace.acknowledge(1, ACKNOWLEDGE_TIMEOUT_S + 1)
    assert not pace.is_silent(1e9)
