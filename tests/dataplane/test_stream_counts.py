"""The counts that a receiver derives from sequence numbers and image ids."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from support.tools.fuzzing import displaced_ids

from stddaq.dataplane.stream_counts import StreamCounts

# Messages of a numbered stream arrive unchanged, garbled, not fitting, or not at all.
Arrivals = st.lists(st.sampled_from(("received", "garbled", "refused", "dropped")), max_size=40)


@given(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 20), max_size=20))
def test_gaps_and_restarts_of_a_numbered_stream_are_those_between_neighbouring_ids(ids: list[int]) -> None:
    counts = StreamCounts()
    for number, image_id in enumerate(ids, 1):
        counts.receive(image_id, number)
    pairs = list(pairwise(ids))
    assert counts.n_images == len(ids)
    assert counts.n_skipped == sum(b - a - 1 for a, b in pairs if b > a)
    assert counts.n_restarts == sum(b <= a for a, b in pairs)
    assert counts.n_late == 0


@given(Arrivals, st.integers(1, 2**63), st.booleans())
def test_every_message_between_two_received_ones_is_counted_exactly_once(
    arrivals: list[str], first_number: int, counts_ids: bool
) -> None:
    counts = StreamCounts()
    # Messages that are dropped before the first number or after the last are unknown.
    for number, arrival in enumerate(["received", *arrivals, "received"], first_number):
        if arrival == "garbled":
            counts.receive_malformed()
        elif arrival != "dropped":
            if counts_ids:
                counts.receive(number, number)
            else:
                counts.receive_number(number)
            if arrival == "refused":
                counts.refuse()
    assert counts.n_malformed == arrivals.count("garbled") + arrivals.count("refused")
    assert counts.n_dropped == arrivals.count("dropped")
    assert counts.is_numbered


def test_garbled_message_before_the_first_number_does_not_count_as_a_number() -> None:
    counts = StreamCounts()
    counts.receive_malformed()
    counts.receive_number(1_700_000_000_000_000)
    assert (counts.n_malformed, counts.n_dropped) == (1, 0)


def test_numbers_of_a_new_ring_that_step_back_drop_nothing() -> None:
    counts = StreamCounts()
    for number in (10, 11, 3, 4, 6):
        counts.receive_number(number)
    assert counts.n_dropped == 1


@given(Arrivals)
def test_stream_without_numbers_has_no_known_drops(arrivals: list[str]) -> None:
    counts = StreamCounts()
    for image_id, arrival in enumerate(arrivals):
        if arrival == "garbled":
            counts.receive_malformed()
        else:
            counts.receive(image_id, 0)
    assert counts.n_dropped == 0
    assert not counts.is_numbered


@given(displaced_ids())
def test_ids_that_arrive_late_are_neither_restarts_nor_skipped(ids: list[int]) -> None:
    counts = StreamCounts()
    for image_id in ids:
        counts.receive(image_id, 0)
    assert counts.n_restarts == 0
    assert counts.n_skipped == 0
    assert counts.n_images == len(ids)


@given(displaced_ids(), st.data())
def test_ids_that_never_arrive_among_late_ones_are_skipped(ids: list[int], data: st.DataObject) -> None:
    lost = data.draw(st.sets(st.sampled_from(range(1, len(ids) - 1)), max_size=5)) if len(ids) > 2 else set()
    counts = StreamCounts()
    received = [image_id for image_id in ids if image_id not in lost]
    for image_id in received:
        counts.receive(image_id, 0)
    assert counts.n_restarts == 0
    assert counts.n_skipped == sum(image_id < max(received) for image_id in lost)


def test_numbers_of_a_new_ring_that_start_from_the_clock_drop_nothing() -> None:
    """A source that was restarted after its ring was removed: 3 million "dropped" after three seconds."""
    begin = 1_700_000_000_000_000
    counts = StreamCounts()
    for number in (begin + 1, begin + 2, begin + 3_000_000, begin + 3_000_001, begin + 3_000_004):
        counts.receive_number(number)
    assert counts.n_dropped == 2
