"""The account of a run and the division of images, compared with references of a few lines."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st
from support.tools.fuzzing import displaced_ids

from stddaq.wire.std_daq import image_metadata_pb2 as pb
from stddaq.writing.driver.account import RunAccount

# Mostly consecutive ids, with gaps, repetitions and restarts.
Ids = st.lists(
    st.one_of(
        st.integers(0, 30), st.tuples(st.integers(0, 40), st.integers(1, 8)).map(lambda r: range(*r, 1))
    ),
    max_size=12,
).map(lambda parts: [i for part in parts for i in ([part] if isinstance(part, int) else part)])
HUGE = 2**64 - 1


def account_of(ids: Sequence[int], damaged: Sequence[bool] = (), sequences: Sequence[int] = ()) -> RunAccount:
    account = RunAccount()
    for position, image_id in enumerate(ids):
        status = pb.missing_packets if position < len(damaged) and damaged[position] else pb.good_image
        sequence = sequences[position] if position < len(sequences) else 0
        account.receive_number(sequence)
        account.record(pb.ImageMetadata(image_id=image_id, status=status, sequence=sequence))
    return account


@given(Ids)
def test_ranges_are_the_ids_in_order_of_arrival(ids: list[int]):
    account = account_of(ids)
    assert [i for first, last in account.ranges for i in range(first, last + 1)] == ids
    assert account.n_images == len(ids)


@given(Ids)
@example([])
@example([HUGE])
@example([0, HUGE])
@example([HUGE, 0])
def test_skipped_ids_of_a_stddaq_source_are_those_missing_between_neighbours(ids: list[int]):
    account = account_of(ids, sequences=range(1, len(ids) + 1))
    pairs = list(pairwise(ids))
    assert list(account.skipped()) == [(a + 1, b - 1) for a, b in pairs if b > a + 1]
    assert account.n_skipped == sum(b - a - 1 for a, b in pairs if b > a)
    assert account.n_restarts == account.epoch == sum(b <= a for a, b in pairs)


@given(Ids)
def test_skipped_ids_of_any_source_are_as_many_as_are_counted(ids: list[int]):
    account = account_of(ids)
    assert sum(last - first + 1 for first, last in account.skipped()) == account.n_skipped
    assert account.epoch == sum(b <= a for a, b in pairwise(ids))


@given(displaced_ids(), st.data())
def test_late_ids_are_recorded_and_only_those_that_never_arrive_are_skipped(
    ids: list[int], data: st.DataObject
):
    lost = data.draw(st.sets(st.sampled_from(range(1, len(ids))), max_size=5)) if len(ids) > 1 else set()
    received = [image_id for image_id in ids if image_id not in lost]
    account = account_of(received)
    skipped = [image_id for first, last in account.skipped() for image_id in range(first, last + 1)]
    assert skipped == sorted(image_id for image_id in lost if image_id < max(received))
    assert account.n_restarts == 0
    assert [i for first, last in account.ranges for i in range(first, last + 1)] == received


@given(Ids, st.integers(1, 5), st.booleans())
def test_every_image_goes_to_exactly_one_writer(ids: list[int], n_writers: int, by_arrival: bool):
    account = account_of(ids)
    for writer in range(n_writers):
        mine = [i for place, i in enumerate(ids) if (place if by_arrival else i) % n_writers == writer]
        assert list(account.ids_of(writer, n_writers, by_arrival)) == mine


@given(st.data(), st.lists(st.integers(0, 50), unique=True, max_size=20).map(sorted))
def test_every_recorded_image_is_exactly_one_of_good_damaged_overwritten_and_failed(
    data: st.DataObject, ids: list[int]
):
    damaged = data.draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))
    fates = data.draw(st.lists(st.sampled_from("-of"), min_size=len(ids), max_size=len(ids)))
    overwritten = [i for i, fate in zip(ids, fates, strict=True) if fate == "o"]
    failed = [i for i, fate in zip(ids, fates, strict=True) if fate == "f"]
    result = account_of(ids, damaged).result(overwritten, failed, list_limit=None)
    is_damaged = [i for i, d, fate in zip(ids, damaged, fates, strict=True) if d and fate == "-"]
    assert result["damaged_ids"] == is_damaged
    assert result["n_good"] == len(ids) - len(is_damaged) - len(overwritten) - len(failed)
    assert (result["overwritten_ids"], result["failed_ids"]) == (overwritten, failed)
    assert (result["first_id"], result["last_id"]) == ((ids[0], ids[-1]) if ids else (None, None))
    assert not result["lists_truncated"]


def test_long_lists_are_truncated_and_marked():
    ids = list(range(0, 40, 2))
    account = account_of(ids, damaged=[True] * len(ids))
    result = account.result([], [], list_limit=10)
    assert result["damaged_ids"] == ids[:10]
    assert result["skipped"] == [[i + 1, i + 1] for i in ids[:10]]
    assert result["lists_truncated"] is True
    assert (result["n_damaged"], result["n_skipped"]) == (20, 19)
    for limit in (None, 20):
        result = account.result([], [], list_limit=limit)
        assert result["damaged_ids"] == ids
        assert result["lists_truncated"] is False


@given(st.lists(st.integers(1, 5), min_size=1, max_size=30))
def test_dropped_images_are_the_sequence_numbers_that_did_not_arrive(steps: list[int]):
    sequences = [1000 + sum(steps[: i + 1]) for i in range(len(steps))]
    account = account_of(range(len(steps)), sequences=sequences)
    missing = set(range(sequences[0], sequences[-1] + 1)) - set(sequences)
    assert account.n_dropped == len(missing)


def test_dropped_images_of_a_source_without_sequence_numbers_are_unknown():
    assert account_of([1, 2, 7]).result([], [], list_limit=None)["n_dropped"] is None
    assert account_of([1, 2], sequences=[5, 8]).result([], [], list_limit=None)["n_dropped"] == 2


def test_damage_of_an_id_that_arrived_twice_is_counted_twice():
    result = account_of([3, 4, 3, 4], damaged=[True, False, True, False]).result([], [], list_limit=None)
    assert (result["n_damaged"], result["n_good"], result["damaged_ids"]) == (2, 2, [3, 3])


def test_messages_that_arrived_and_were_not_recorded_are_not_dropped():
    account = RunAccount()
    for sequence in (10, 11):  # Image 10 is recorded; 11 is below start_id.
        account.receive_number(sequence)
    account.receive_malformed()
    account.receive_number(13)
    assert account.n_dropped == 0
    account.receive_number(16)
    assert account.n_dropped == 2


@given(st.data(), Ids)
def test_no_bad_image_of_a_repeated_id_counts_as_good(data: st.DataObject, ids: list[int]):
    # `make chaos` with seed 2:1 found this: an id was overwritten, and damaged after a restart.
    damaged = data.draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))
    overwritten = data.draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))
    n_good = sum(not d and not o for d, o in zip(damaged, overwritten, strict=True))
    without_pixels = sorted(i for i, o in zip(ids, overwritten, strict=True) if o)
    result = account_of(ids, damaged).result(without_pixels, [], list_limit=None)
    assert isinstance(result["n_good"], int)
    assert result["n_good"] <= n_good
    if len(set(ids)) == len(ids):
        assert result["n_good"] == n_good


def test_an_id_that_was_overwritten_and_then_damaged_is_counted_twice() -> None:
    account = account_of([5, 6, 5], damaged=[False, False, True])
    result = account.result([5], [], list_limit=None)
    assert (result["n_good"], result["n_overwritten"], result["n_damaged"]) == (1, 1, 1)
    assert result["damaged_ids"] == [5]
