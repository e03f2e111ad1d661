"""The order of a camera's images is restored; without sockets, with a fake clock."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stddaq.sources.bsread.reordering import (
    MAX_DOUBT_S,
    MAX_WAIT_S,
    N_EVIDENCE,
    N_OLDER,
    Arrival,
    ReorderBuffer,
)

STEP_NS = 10**6


class Run:
    """Feeds images in an order: `images` are (id, number of the picture), one every ms."""

    def __init__(self, n_connections: int = 4, max_held: int = 1000) -> None:
        self.order: ReorderBuffer[int] = ReorderBuffer(n_connections, max_held)
        self.now = 0.0
        self.released: list[tuple[int, int]] = []
        self._n_connections = n_connections

    def feed(self, images: Iterable[tuple[int, int]], connection: int | None = None) -> None:
        for image_id, taken in images:
            self.now += 0.001
            which = taken % self._n_connections if connection is None else connection
            self.order.add(Arrival(image_id, taken * STEP_NS, self.now, which, taken))
            self._take()

    def _take(self) -> None:
        self.released += [(arrival.image_id, arrival.content) for arrival in self.order.take(self.now)]

    def wait(self) -> None:
        """Wait until no image is held back."""
        for _ in range(1000):
            due_at = self.order.due_at
            if due_at is None:
                return
            self.now = max(self.now, due_at)
            self._take()
        raise AssertionError("images are held back for ever")

    @property
    def counts(self) -> tuple[int, int, int, int]:
        order = self.order
        return order.n_skipped_ids, order.n_late, order.n_repeated, order.n_restarts


def taken_in_order(ids: Iterable[int], first: int = 1) -> list[tuple[int, int]]:
    return [(image_id, taken) for taken, image_id in enumerate(ids, first)]


@st.composite
def interleavings(draw: st.DrawFn) -> tuple[int, list[tuple[int, int]]]:
    """Generate (first id, images as four connections deliver them): each in order, all interleaved."""
    first, n = draw(st.integers(0, 3)), draw(st.integers(1, 60))
    queues = [[(first + i, i + 1) for i in range(n) if i % 4 == lane] for lane in range(4)]
    arrived = []
    while any(queues):
        lane = draw(st.sampled_from([lane for lane in range(4) if queues[lane]]))
        arrived.append(queues[lane].pop(0))
    return first, arrived


@given(interleavings())
def test_any_interleaving_of_four_connections_is_put_in_order(
    case: tuple[int, list[tuple[int, int]]],
) -> None:
    first, arrived = case
    run = Run()
    run.feed([(image_id, taken) for image_id, taken in arrived])
    run.wait()
    assert [image_id for image_id, _ in run.released] == list(range(first, first + len(arrived)))
    assert run.counts == (0, 0, 0, 0)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 100)), max_size=60), st.integers(1, 4))
def test_ids_increase_between_restarts_whatever_arrives(images: list[tuple[int, int]], n: int) -> None:
    run = Run(n)
    run.feed(images)
    run.wait()
    ids = [image_id for image_id, _ in run.released]
    falls = sum(later <= earlier for earlier, later in pairwise(ids))
    assert falls <= run.order.n_restarts
    assert len(ids) + run.order.n_late + run.order.n_repeated == len(images)
    assert run.order.n_held == 0


def test_missing_image_is_given_up_when_every_connection_has_delivered_a_later_one() -> None:
    run = Run()
    run.feed(taken_in_order([0, 1, 2, 4, 5, 6]))
    assert [image_id for image_id, _ in run.released] == [0, 1, 2]
    run.feed([(7, 7)], connection=3)
    run.feed([(8, 8)])
    assert [image_id for image_id, _ in run.released][:4] == [0, 1, 2, 4]


def test_lost_connection_does_not_count_as_one_that_has_delivered_a_later_image() -> None:
    run = Run()
    run.feed(taken_in_order([0, 1, 2, 3]))
    run.order.connection_lost(all_lost=False)
    run.feed([(5, 5), (6, 6), (7, 7), (4, 8)])
    assert [image_id for image_id, _ in run.released] == list(range(8))
    assert run.counts == (0, 0, 0, 0)


def test_wait_for_a_missing_image_is_limited() -> None:
    run = Run()
    run.feed(taken_in_order([0, 1, 3]))
    assert run.order.due_at == pytest.approx(0.003 + MAX_WAIT_S)
    run.now += MAX_WAIT_S - 0.01
    run.feed([(2, 4), (3, 5)])
    run.wait()
    assert [image_id for image_id, _ in run.released] == [0, 1, 2, 3]
    assert run.counts == (0, 0, 1, 0)


def test_no_more_images_are_held_back_than_allowed() -> None:
    run = Run(max_held=10)
    run.feed(taken_in_order([0, *range(2, 50)]), connection=0)
    assert len(run.released) == 49
    assert run.counts == (1, 0, 0, 0)


def test_first_image_waits_for_images_that_may_precede_it() -> None:
    run = Run()
    run.feed([(7, 2)])
    assert run.released == []
    run.feed([(6, 1)])
    run.wait()
    assert [image_id for image_id, _ in run.released] == [6, 7]


def test_single_connection_is_never_waited_for() -> None:
    run = Run(n_connections=1)
    run.feed(taken_in_order([7, 8, 20, 21]))
    assert [image_id for image_id, _ in run.released] == [7, 8, 20, 21]
    assert run.counts == (11, 0, 0, 0)


@pytest.mark.parametrize("last", [8, 100, 100_000])
@pytest.mark.parametrize("first", [0, 1, 3])
def test_restart_of_the_ids_loses_no_image(first: int, last: int) -> None:
    run = Run()
    old = taken_in_order(range(last - 5, last + 1))
    new = taken_in_order(range(first, first + N_EVIDENCE), first=len(old) + 1)
    run.feed(old + new)
    run.wait()
    assert run.released == old + new
    assert run.counts == (0, 0, 0, 1)


def test_images_are_put_in_order_at_a_restart() -> None:
    run = Run()
    run.feed(taken_in_order(range(10)))
    run.feed([(1, 12), (0, 11), (2, 13), (4, 15), (3, 14)])
    run.wait()
    assert [image_id for image_id, _ in run.released] == [*range(10), *range(5)]


def test_straggler_from_before_the_restart_is_late() -> None:
    run = Run()
    run.feed([*taken_in_order(range(10)), *taken_in_order(range(6), first=20), (11, 10), (6, 26)])
    run.wait()
    assert [image_id for image_id, _ in run.released] == [*range(10), *range(7)]
    assert run.counts == (0, 1, 0, 1)


@pytest.mark.parametrize(("again", "n_restarts"), [([0], 1), ([0, 1], 1), ([1], 1), ([5], 0), ([1, 0], 0)])
def test_few_images_are_a_restart_only_if_they_start_as_a_camera_does(
    again: list[int], n_restarts: int
) -> None:
    run = Run()
    run.feed(taken_in_order(range(10)))
    run.feed(taken_in_order(again, first=20))
    assert len(run.released) == 10
    before = run.now
    run.wait()
    assert run.now - before <= MAX_DOUBT_S + MAX_WAIT_S
    assert run.order.n_restarts == n_restarts
    assert len(run.released) == 10 + (len(again) if n_restarts else 0)


def test_repeated_images_between_good_ones_are_not_a_restart() -> None:
    run = Run()
    taken = taken_in_order(range(50))
    for position in range(40, 5, -5):
        taken.insert(position, (position - 5, 10**6))
    run.feed([(image_id, i) for i, (image_id, _) in enumerate(taken, 1)])
    run.wait()
    assert [image_id for image_id, _ in run.released] == list(range(50))
    assert run.counts == (0, 0, 7, 0)


def test_burst_of_late_images_is_not_a_restart() -> None:
    run = Run()
    images = taken_in_order(range(100))
    late = [image for image in images if image[1] % 4 == 2]
    run.feed([image for image in images if image not in late])
    run.wait()
    run.feed(late)
    run.feed([(100, 101)])
    run.wait()
    assert run.order.n_restarts == 0
    assert (run.order.n_late, run.order.n_skipped_ids) == (25, 25)
    assert [image_id for image_id, _ in run.released] == sorted(set(range(101)) - {i for i, _ in late})


def test_ids_may_restart_anywhere_after_the_camera_disconnected() -> None:
    run = Run()
    run.feed(taken_in_order(range(10)))
    run.order.connection_lost(all_lost=True)
    run.feed([(8, 1)])  # This holds even if its clock was set back.
    run.wait()
    assert run.released[-1] == (8, 1)
    assert run.order.n_restarts == 1


def test_camera_whose_clock_was_set_back_is_received_after_a_while() -> None:
    run = Run()
    run.feed(taken_in_order(range(1000), first=10_000))
    run.feed(taken_in_order(range(500), first=1))
    run.wait()
    assert run.order.n_restarts == 1
    assert len(run.released) == 1000 + 500 - N_OLDER + 1
