"""Pauses between two reads of a socket, with a fake clock."""

from __future__ import annotations

from itertools import pairwise

import pytest
from support.processes.deployment import make_config

from stddaq.config import DetectorConfig
from stddaq.daemon.batching import (
    FASTEST_BYTES_PER_S,
    FASTEST_SOURCE_HZ,
    FIRST_S,
    LONGEST_OF_READER_S,
    LONGEST_OF_WRITER_S,
    LONGEST_S,
    RING_FRACTION,
    SLOW_GAP_S,
    TARGET,
    Batching,
    longest_pause,
)

LONGEST = 0.02


class Reader:
    """A service that reads a stream with the pauses of `Batching`."""

    def __init__(self, target: int = TARGET) -> None:
        self.now = 100.0
        self.batching = Batching(target, LONGEST, lambda: self.now)
        self.owed = 0.0

    def stream(self, rate: float, seconds: float, wake_up: float = 50e-6) -> list[float]:
        """Send images at `rate` for `seconds`. Return the pause after each read."""
        pauses, end = [], self.now + seconds
        pause = 0.0
        while self.now < end:
            # After no pause the poller waits for the next image.
            elapsed = max(pause, wake_up, 0.0 if pause else 1 / rate)
            self.now += elapsed
            self.owed += rate * elapsed
            n_messages = int(self.owed)
            self.owed -= n_messages
            pause = self.batching.pause_after(n_messages)
            pauses.append(pause)
        return pauses

    def quiet(self, seconds: float) -> None:
        """Send no images for a while, so that one read finds nothing."""
        assert self.batching.pause_after(0) == 0
        self.now += seconds


@pytest.fixture
def reader() -> Reader:
    return Reader()


@pytest.mark.parametrize("rate", [1, 10, 100, 150])
def test_slow_images_are_handled_one_by_one(reader: Reader, rate: float) -> None:
    assert set(reader.stream(rate, 100 / rate)) == {0.0}


def test_fast_images_are_handled_in_batches_of_the_target(reader: Reader) -> None:
    pause = reader.stream(5000, 1.0)[-1]
    assert pause == pytest.approx(TARGET / 5000, rel=0.1)


@pytest.mark.parametrize("rate", [500, 2000, 5000, 40_000])
def test_no_pause_is_longer_than_the_longest(reader: Reader, rate: float) -> None:
    assert 0 < max(reader.stream(rate, 1.0)) <= LONGEST


def test_pauses_grow_at_most_twofold_from_the_first(reader: Reader) -> None:
    pauses = [0.0, *reader.stream(5000, 0.1)]
    assert FIRST_S in pauses
    assert all(after <= max(FIRST_S, 2 * before) for before, after in pairwise(pauses))


def test_pause_of_a_short_burst_does_not_delay_the_next_burst(reader: Reader) -> None:
    for _ in range(TARGET // 2 - 1):
        reader.now += 0.0001
        reader.batching.pause_after(1)
    reader.quiet(2 * SLOW_GAP_S)
    assert reader.batching.pause_after(1) == 0


def test_pauses_stay_between_batches_of_a_sender_that_batches_as_well(reader: Reader) -> None:
    reader.stream(5000, 0.5)
    reader.quiet(2 * SLOW_GAP_S)
    assert reader.batching.pause_after(TARGET) > 0


def test_quiet_stream_has_no_pause(reader: Reader) -> None:
    reader.stream(5000, 0.5)
    assert reader.batching.pause_after(0) == 0


@pytest.mark.parametrize("edge", [32, 512, 2048])
def test_longest_pause_leaves_most_of_the_ring_buffer_to_the_fastest_source(edge: int) -> None:
    config = DetectorConfig.parse(make_config(image_pixel_height=edge, image_pixel_width=edge))
    fastest_hz = min(FASTEST_SOURCE_HZ, FASTEST_BYTES_PER_S / config.image_bytes)
    assert longest_pause(config) <= LONGEST_S
    assert longest_pause(config) * fastest_hz <= RING_FRACTION * config.n_slots * 1.001


def test_driver_and_writer_together_keep_an_image_for_less_than_20_ms() -> None:
    config = DetectorConfig.parse(make_config(ram_buffer_gb=1))
    longest = []
    for batching in (
        Batching.of_driver(config),
        Batching.of_reader(config),
        Batching.of_writer(config, driver_batches=True),
        Batching.of_writer(config, driver_batches=False),
    ):
        reader = Reader()
        reader.batching = batching
        batching._clock = lambda reader=reader: reader.now
        longest.append(max(reader.stream(1000, 1.0)))
    assert longest == [LONGEST_S, LONGEST_OF_READER_S, LONGEST_OF_WRITER_S, LONGEST_OF_READER_S]
    assert LONGEST_S + LONGEST_OF_WRITER_S < 0.02


def test_driver_batches_for_all_its_writers() -> None:
    config = DetectorConfig.parse(make_config(number_of_writers=4))
    assert Batching.of_driver(config)._target == 4 * Batching.of_reader(config)._target
