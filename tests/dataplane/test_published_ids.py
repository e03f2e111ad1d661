"""Without a cursor, the announced ids decide which images may have been overwritten."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from hypothesis import assume, given
from hypothesis import strategies as st
from support.tools.fuzzing import displaced_ids

from stddaq.dataplane.published_ids import MIN_MARGIN, Epochs

Stream = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 12)), min_size=1, max_size=5).map(
    lambda epochs: [i for first, n in epochs for i in range(first, first + n)]
)


@given(Stream, st.integers(1, 40), st.data())
def test_every_slot_that_was_announced_again_is_suspect(ids: list[int], n_slots: int, data: st.DataObject):
    """This includes slots of up to `MIN_MARGIN` images that are written and not announced yet."""
    recorded = sorted(data.draw(st.sets(st.integers(0, len(ids) - 1), max_size=len(ids))))
    epochs = Epochs(n_slots)
    for image_id in ids:
        epochs.publish(image_id)
    written = [*ids, *range(ids[-1] + 1, ids[-1] + 1 + MIN_MARGIN)]
    # If no recorded image shows a restart, it cannot be distinguished from late images.
    assume(restarts(ids) == restarts([ids[i] for i in recorded]))
    for position in recorded:
        suspect = epochs.is_suspect(ids[position])
        if any(other % n_slots == ids[position] % n_slots for other in written[position + 1 :]):
            assert suspect, f"image {ids[position]} at {position}"


def restarts(ids: Sequence[int]) -> int:
    return sum(following <= image_id for image_id, following in pairwise(ids))


@given(st.integers(0, 1000), st.integers(1, 50))
def test_recent_images_of_one_epoch_are_not_suspect(first: int, n_images: int):
    epochs = Epochs(n_images + MIN_MARGIN)
    ids = range(first, first + n_images)
    for image_id in ids:
        epochs.publish(image_id)
    assert not any(epochs.is_suspect(image_id) for image_id in ids)


def test_images_are_reached_by_their_own_announcement_or_a_later_one():
    epochs = Epochs(1000)
    assert not epochs.has_reached(0)
    epochs.publish(10)
    assert epochs.has_reached(10)
    assert epochs.has_reached(3)
    assert not epochs.has_reached(11)


def test_images_after_a_restart_are_not_reached_by_the_ids_before_it():
    epochs = Epochs(1000)
    for image_id in range(100):
        epochs.publish(image_id)
    epochs.is_suspect(99)
    assert not epochs.has_reached(50)
    for image_id in range(40):
        epochs.publish(image_id)
    assert not epochs.has_reached(50)
    assert epochs.has_reached(39)


@given(displaced_ids(), st.integers(0, 1000))
def test_late_ids_cost_no_image(ids: list[int], first: int):
    epochs = Epochs(2 * len(ids) + MIN_MARGIN)
    for image_id in ids:
        epochs.publish(first + image_id)
        assert epochs.has_reached(first + image_id)
    assert not any(epochs.is_suspect(first + image_id) for image_id in ids)


def test_a_repeated_id_costs_only_the_earlier_image_of_that_id():
    epochs = Epochs(1000)
    ids = [1, 2, 3, 2, 4, 5]
    for image_id in ids:
        epochs.publish(image_id)
    assert [epochs.is_suspect(image_id) for image_id in ids] == [False, True, False, False, False, False]


def test_images_are_suspect_while_a_repeated_id_may_be_the_first_of_a_restart():
    epochs = Epochs(1000)
    for image_id in (1, 2, 3, 2):
        epochs.publish(image_id)
    assert [epochs.is_suspect(image_id) for image_id in (1, 2, 3)] == [False, True, True]
