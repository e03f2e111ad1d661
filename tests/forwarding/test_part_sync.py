"""Which images leave the synchroniser, in which order: its table of faults, without I/O."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stddaq.dataplane.metadata import ID_MISSMATCH, ImageMetadata
from stddaq.forwarding.lost_images import LostImages
from stddaq.forwarding.messages import Restarts
from stddaq.forwarding.part_sync import PartedImage, PartSync

TIMEOUT_S = 1.0
N_SLOTS = 1000


class Fed:
    """A `PartSync` and the images that have left it."""

    def __init__(self, n_parts: int = 2, *, numbered: bool = True, named: bool = True) -> None:
        self.sync = PartSync(n_parts, N_SLOTS, TIMEOUT_S)
        self._numbered, self._named = numbered, named
        self.now = 0.0
        self.images: list[PartedImage] = []

    def add(self, image_id: int, *parts: int, number: int = 0, mark: int = 7) -> None:
        """Add parts; the number of an image is its id + 1000 by default."""
        for part in parts:
            metadata = ImageMetadata(image_id=image_id, status=1)  # pyright: ignore[reportArgumentType]
            if self._numbered:
                metadata.forwarding.number = number or image_id + 1000
            if self._named:
                metadata.forwarding.pair, metadata.forwarding.mark = part + 1, mark
            if self.sync.add(metadata, self.now):
                self.images += self.sync.take(float("-inf"))

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.images += self.sync.take(self.now)

    @property
    def left(self) -> list[tuple[int, tuple[int, ...]]]:
        return [(image.image_id, tuple(image.lacking)) for image in self.images]

    @property
    def complete(self) -> list[int]:
        return [image.image_id for image in self.images if not image.lacking]


@pytest.mark.parametrize("numbered", [True, False])
def test_a_late_image_leaves_before_those_that_were_complete_first(numbered: bool) -> None:
    fed = Fed(3, numbered=numbered)
    for image_id in (1, 2, 3):
        fed.add(image_id, 1, 0)
    assert not fed.images
    fed.add(1, 2)
    assert fed.complete == [1]
    for image_id in (2, 3):
        fed.add(image_id, 2)
    assert fed.complete == [1, 2, 3]


def test_numbered_parts_out_of_order_are_late_not_a_restart() -> None:
    fed = Fed()
    # A C++ synchroniser announces 2, 3, 1.
    for image_id, part in [(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (1, 1), (1, 0)]:
        fed.add(image_id, part)
    assert fed.left == [(1, (1,)), (2, ()), (3, ())]
    assert (fed.sync.n_late, fed.sync.n_restarts) == (2, 0)


def test_an_image_is_given_up_when_the_pair_that_it_lacks_has_delivered_a_later_one() -> None:
    fed = Fed()
    fed.add(1, 0)
    fed.add(2, 0, 1)
    assert fed.left == [(1, (1,)), (2, ())]
    assert fed.sync.n_incomplete == 1


def test_an_image_waits_no_longer_than_the_timeout() -> None:
    fed = Fed()
    fed.add(1, 0)
    fed.add(2, 0)
    fed.wait(0.9 * TIMEOUT_S)
    assert not fed.images
    fed.wait(0.2 * TIMEOUT_S)
    assert fed.left == [(1, (1,)), (2, (1,))]
    fed.add(1, 1)
    assert fed.sync.n_late == 1
    assert fed.sync.n_waiting == 0


@pytest.mark.parametrize("numbered", [True, False])
def test_a_part_that_comes_twice_counts_once(numbered: bool) -> None:
    fed = Fed(numbered=numbered)
    fed.add(1, 0, 0)
    assert not fed.images
    fed.add(1, 1)
    assert fed.complete == [1]
    assert fed.sync.n_repeated == 1


@pytest.mark.parametrize("numbered", [True, False])
def test_ids_that_restart_are_announced_after_those_before(numbered: bool) -> None:
    fed = Fed(numbered=numbered)
    fed.add(4, 0, 1)
    fed.add(5, 0)
    fed.add(1, 0, number=1006)
    fed.add(5, 1)
    fed.add(1, 1, number=1006)
    assert fed.complete == [4, 5, 1]


def test_the_same_single_id_again_and_again_is_a_restart_each_time() -> None:
    fed = Fed(numbered=False)
    for _ in range(3):
        fed.add(1, 0, 1)
        fed.wait(2 * TIMEOUT_S)
    assert fed.complete == [1, 1, 1]


def test_cpp_peers_that_name_no_parts_are_counted() -> None:
    fed = Fed(3, numbered=False, named=False)
    for image_id in (1, 2, 1, 2, 2, 1):
        fed.add(image_id, 0)
    assert fed.complete == [1, 2]
    fed.add(3, 0, 0)
    fed.wait(2 * TIMEOUT_S)
    assert fed.left[-1] == (3, (2,))
    fed.add(1, 0, 0, 0)
    assert fed.complete == [1, 2, 1]


def test_without_marks_an_image_that_waited_for_almost_a_ring_counts_as_overwritten() -> None:
    fed = Fed(numbered=False, named=False)
    fed.add(1, 0)
    fed.add(N_SLOTS - 10, 0, 0)
    fed.add(1, 0)
    assert fed.complete == [1, N_SLOTS - 10]
    assert [image.metadata.status for image in fed.images] == [ID_MISSMATCH, 1]


@given(st.data())
def test_any_interleaving_of_pairs_that_lose_parts_announces_exactly_the_complete_images(
    data: st.DataObject,
) -> None:
    n_parts, n_images = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 12))
    streams = [
        [image_id for image_id in range(n_images) if data.draw(st.integers(0, 4))] for _ in range(n_parts)
    ]
    expected = [i for i in range(n_images) if all(i in stream for stream in streams)]
    fed = Fed(n_parts, numbered=data.draw(st.booleans()))
    waiting = [list(stream) for stream in streams]
    while any(waiting):
        part = data.draw(st.sampled_from([p for p in range(n_parts) if waiting[p]]))
        fed.add(waiting[part].pop(0), part)
    fed.wait(2 * TIMEOUT_S)
    assert fed.complete == expected
    assert [image_id for image_id, _ in fed.left] == sorted({i for stream in streams for i in stream})
    assert fed.sync.n_waiting == 0


def lost_lines(*images: tuple[int, int, str]) -> list[str]:
    lost = LostImages(1.0)
    for image_id, number, why in images:
        lost.follow(ImageMetadata(image_id=image_id), number, why)
    return list(lost.lines(0.0))


def test_images_of_which_nothing_arrived_are_listed_by_id() -> None:
    assert lost_lines((10, 110, ""), (15, 115, ""), (16, 116, "x"), (17, 117, "x")) == [
        "images 11-14: nothing arrived",
        "images 16-17: x",
    ]


def test_ids_that_the_source_left_out_are_not_lost() -> None:
    assert lost_lines((10, 110, ""), (15, 111, "")) == []
    assert lost_lines((10, 0, ""), (15, 0, "")) == []
    assert lost_lines((10, 110, ""), (20, 113, "")) == ["images 20: 2 images before it did not arrive"]


@pytest.mark.parametrize(
    ("ids", "received", "expected"),
    [
        ([*range(8, 16), *range(1, 6)], [8, 9, 10, 4, 5], ["images 11-15, 1-3: nothing arrived"]),
        ([*range(8, 16), *range(1, 6)], [8, 9, 10, 1, 2], ["images 11-15: nothing arrived"]),
        ([*range(8, 16), *range(1, 6)], [14, 15, 3], ["images 1-2: nothing arrived"]),
        (
            [8, 9, 12, 15, 1, 2],
            [8, 2],
            ["images 8: 3 images after it did not arrive", "images 1: nothing arrived"],
        ),
        (
            [8, 9, 1, 2, 1, 2],
            [8, 9, 2],
            ["images 9: 2 images after it did not arrive", "images 1: nothing arrived"],
        ),
    ],
)
def test_images_lost_on_both_sides_of_a_restart_are_listed_by_id(
    ids: list[int], received: list[int], expected: list[str]
) -> None:
    lost, restarts = LostImages(1.0), Restarts()
    waiting = list(received)
    for number, image_id in enumerate(ids, 500):
        metadata = ImageMetadata(image_id=image_id)
        restarts.follow(image_id, number)
        restarts.tell(metadata.forwarding)
        # The first of an id that comes twice is lost.
        if image_id in waiting[:1] and image_id not in ids[number - 499 :]:
            waiting.pop(0)
            lost.follow(metadata, number)
    assert not waiting
    assert list(lost.lines(0.0)) == expected


def test_lines_come_once_in_a_period() -> None:
    lost = LostImages(10.0)
    lost.follow(ImageMetadata(image_id=1), 1, "x")
    assert lost.lines(100.0)
    lost.follow(ImageMetadata(image_id=2), 2, "x")
    assert not lost.lines(105.0)
    assert lost.lines(111.0) == ["images 2: x"]
