"""Which images a ring buffer is trusted to hold."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.processes.deployment import make_config
from support.processes.rings import MakeConfig, other_process, put

from stddaq.config import DetectorConfig
from stddaq.dataplane.ring_buffer import RingBuffer


def test_image_is_not_trusted_while_it_is_being_written(make: MakeConfig) -> None:
    with RingBuffer(make(), "image") as ring:
        sequence = put(ring, 5)
        assert ring.holds(5, sequence)
        ring.begin(1005)
        assert not ring.holds(5, sequence)
        later = ring.commit(1005)
        assert not ring.holds(5, sequence)
        assert ring.holds(1005, later)


def test_the_next_source_reuses_no_sequence_number(make: MakeConfig) -> None:
    config = make()
    with RingBuffer(config, "image") as first:
        sequences = [put(first, i) for i in range(10)]
    with RingBuffer(config, "image") as second:
        assert not any(second.holds(i, sequence) for i, sequence in enumerate(sequences))
        assert put(second, 0) > sequences[-1]


def test_sequence_continues_when_a_source_is_restarted_on_a_ring_in_use(make: MakeConfig) -> None:
    config = make()
    with RingBuffer(config, "image") as reader:
        with RingBuffer(config, "image") as source:
            sequence = put(source, 8)
        assert reader.holds(8, sequence)
        with RingBuffer(config, "image") as restarted:
            assert put(restarted, 8) == sequence + 1
        assert not reader.holds(8, sequence)


def test_only_the_source_that_published_an_image_keeps_others_from_its_slot(make: MakeConfig) -> None:
    config = make()
    with RingBuffer(config, "image") as reader:
        with RingBuffer(config, "image", as_source=True) as first:
            of_first = put(first, 1)
            assert reader.has_source_of(of_first)
        assert not reader.has_source_of(of_first)
        with RingBuffer(config, "image", as_source=True) as second:
            of_second = put(second, 2)
            assert reader.has_source_of(of_second)
            assert not reader.has_source_of(of_first)
            # An announcement without number is of the time between the two.
            assert not reader.is_claimed(of_first)
            reader.claim()
            assert reader.is_claimed(of_first)
            assert not reader.is_claimed(of_second)
        reader.claim()
        assert reader.is_claimed(of_second)


@pytest.fixture(scope="module")
def shared_ring() -> Iterator[RingBuffer]:
    with RingBuffer(DetectorConfig.parse(make_config(image_pixel_height=1)), "image") as ring:
        yield ring


# Few slots, so that images share them; ids have gaps and restarts.
image_ids = st.builds(lambda lap, slot: lap * 1000 + slot, st.integers(0, 5), st.integers(0, 3))


@settings(max_examples=200)
@given(st.lists(st.tuples(image_ids, st.booleans()), max_size=40))
def test_ring_holds_exactly_the_last_image_committed_to_each_slot(
    shared_ring: RingBuffer, steps: list[tuple[int, bool]]
) -> None:
    """Steps are (image id, whether it is committed). The reference is a dictionary by slot."""
    announced: list[tuple[int, int]] = []
    in_slot: dict[int, int] = {}
    for image_id, is_completed in steps:
        shared_ring.begin(image_id)
        in_slot[image_id % 1000] = 0
        if is_completed:
            sequence = shared_ring.commit(image_id)
            announced.append((image_id, sequence))
            in_slot[image_id % 1000] = sequence
        for earlier_id, sequence in announced:
            assert shared_ring.holds(earlier_id, sequence) == (in_slot[earlier_id % 1000] == sequence)
    assert len({sequence for _, sequence in announced}) == len(announced)


def test_reader_that_is_lapped_never_accepts_a_torn_image(make: MakeConfig, tmp_path: Path) -> None:
    """Another process fills one slot with k, k + 1, ... without a pause, while the reader copies it."""
    config = make(image_pixel_height=512, image_pixel_width=512)
    announcements = tmp_path / "announcements"
    accepted = lapped = 0
    with other_process("lap", config, "image", announcements), RingBuffer(config, "image") as ring:
        n_slots, deadline = ring.geometry.n_slots, time.monotonic() + 90
        while accepted < 200 or lapped < 20:
            assert time.monotonic() < deadline, f"{accepted} accepted, {lapped} found lapped"
            k, sequence = np.fromfile(announcements, "<u8", 2).tolist()
            image_id = k * n_slots
            if not ring.holds(image_id, sequence):
                lapped += 1
                continue
            copy = ring.image(image_id).copy()
            if ring.holds(image_id, sequence):
                accepted += 1
                assert (copy == k % 65536).all(), (
                    f"image {image_id} was accepted with pixels of another image"
                )
            else:
                lapped += 1
