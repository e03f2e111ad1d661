"""Late ids and restarts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.tools.fuzzing import displaced_ids

from stddaq.dataplane.id_order import LATE_IDS, N_EVIDENCE, IdOrder, Place


def places(ids: Sequence[int], *, in_order: bool = False) -> list[Place | None]:
    """Return the place of each id; None: it continues the stream."""
    order, found = IdOrder(), list[Place | None]()
    for image_id in ids:
        if image_id == order.next_id:
            order.next_id += 1
            found.append(None)
        else:
            expected = order.is_restart(image_id, in_order=in_order)
            found.append(order.place(image_id, in_order=in_order))
            assert (found[-1] is Place.RESTART) == expected
    return found


@given(displaced_ids())
def test_displaced_ids_are_late(ids: list[int]) -> None:
    assert set(places(ids)) <= {None, Place.FIRST, Place.GAP, Place.LATE}


@pytest.mark.parametrize(
    ("ids", "last"),
    [
        ([1, 2, 3, 0], Place.LATE),
        ([1, 2, 3, 0, 5, 4], Place.LATE),
        ([1, 2, 3, 20, 4, 5, 6, 7, 8], Place.LATE),
        ([1, 2, 3, 2], Place.REPEATED),
        ([1, 2, 3, 3], Place.REPEATED),
        ([0, 1, 2, 0], Place.RESTART),
        ([0, 0], Place.RESTART),
        ([*range(100), 100 - LATE_IDS - 2], Place.RESTART),
        ([*range(100), 100 - LATE_IDS - 1], Place.REPEATED),
        ([5, 6, 7, *range(N_EVIDENCE)], Place.RESTART),
        ([*range(10), *range(1, N_EVIDENCE + 1)], Place.RESTART),
        ([*range(10), 1, 2, 3, 10, 4], Place.REPEATED),
        ([5, 9], Place.GAP),
    ],
)
def test_step_back_is_late_until_there_is_evidence_of_a_restart(ids: list[int], last: Place) -> None:
    assert places(ids)[-1] is last


@given(st.lists(st.integers(0, 30), min_size=2, max_size=40))
def test_each_step_back_of_a_source_that_publishes_in_order_is_a_restart(ids: list[int]) -> None:
    found = places(ids, in_order=True)
    for (before, image_id), place in zip(pairwise(ids), found[1:], strict=True):
        assert (place is Place.RESTART) == (image_id <= before)


@given(st.integers(0, 30), st.integers(1, 60), st.integers(1, 60))
def test_ids_that_start_again_are_a_restart(first: int, n_before: int, n_after: int) -> None:
    found = places([*range(first, first + n_before), *range(first, first + n_after)])
    assert found.count(Place.RESTART) == 1
    assert found[n_before] is Place.RESTART
