"""Which whole images leave the synchroniser, in which order, without I/O."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stddaq.dataplane.metadata import ID_MISSMATCH, ImageMetadata
from stddaq.forwarding.part_sync import MARGIN
from stddaq.forwarding.pixel_sync import QUEUE_SIZE, PixelSync, WholeImage

TIMEOUT_S = 0.1
N_SLOTS = 1000


class Fed:
    """A `PixelSync` and the images that have left it."""

    def __init__(self, n_pairs: int = 3, *, numbered: bool = True) -> None:
        self.sync = PixelSync(n_pairs, N_SLOTS, TIMEOUT_S)
        self._numbered = numbered
        self.now = 0.0
        self.images: list[WholeImage] = []

    def _message(self, image_id: int, number: int) -> ImageMetadata:
        """Return metadata; the number of an image is its id + 1000 by default."""
        metadata = ImageMetadata(image_id=image_id, status=1)  # pyright: ignore[reportArgumentType]
        if self._numbered:
            metadata.forwarding.number = number or image_id + 1000
        return metadata

    def announce(self, *image_ids: int, number: int = 0) -> None:
        """Add messages of the metadata stream."""
        for image_id in image_ids:
            self.sync.add_metadata(self._message(image_id, number), self.now)
        self.wait(0)

    def pixels(self, *image_ids: int, number: int = 0, mark: int = 7) -> None:
        """Add messages of receivers."""
        for image_id in image_ids:
            message = self._message(image_id, number)
            message.forwarding.mark = mark
            self.sync.add_pixels(message, self.now)
        self.wait(0)

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.images += self.sync.take(self.now)

    @property
    def complete(self) -> list[int]:
        return [image.image_id for image in self.images if not image.is_lost]

    @property
    def lost(self) -> list[int]:
        return [image.image_id for image in self.images if image.is_lost]


@pytest.mark.parametrize("numbered", [True, False])
def test_images_leave_in_the_order_of_the_metadata_whichever_pair_is_first(numbered: bool) -> None:
    fed = Fed(numbered=numbered)
    fed.announce(1, 2)
    fed.pixels(3, 2)
    assert not fed.images
    fed.pixels(1)
    assert fed.complete == [1, 2]
    fed.announce(3)
    assert fed.complete == [1, 2, 3]
    assert fed.sync.n_waiting == 0


def test_an_image_is_lost_as_soon_as_its_pair_has_delivered_a_later_one() -> None:
    fed = Fed()
    fed.announce(1, 2, 3, 4)
    fed.pixels(2, 3)
    assert not fed.images
    fed.pixels(4)
    assert (fed.lost, fed.complete) == ([1], [2, 3, 4])
    assert fed.sync.n_incomplete == 1


def test_a_dead_pair_costs_one_image_in_n_each_after_the_timeout() -> None:
    fed = Fed()
    fed.announce(1, 2, 3)
    fed.pixels(2, 3)
    fed.wait(0.9 * TIMEOUT_S)
    assert not fed.images
    fed.wait(0.2 * TIMEOUT_S)
    assert (fed.lost, fed.complete) == ([1], [2, 3])
    fed.pixels(1)
    assert (fed.sync.n_late, fed.complete) == (1, [2, 3])


def test_pixels_that_come_twice_count_once() -> None:
    fed = Fed()
    fed.announce(1)
    fed.pixels(1, 1)
    assert (fed.complete, fed.sync.n_repeated) == ([1], 1)


def test_metadata_that_come_twice_count_once() -> None:
    fed = Fed()
    fed.announce(1, 1)
    fed.pixels(1)
    assert (fed.complete, fed.sync.n_repeated) == ([1], 1)


@pytest.mark.parametrize("numbered", [True, False])
def test_ids_that_restart_are_announced_after_those_before(numbered: bool) -> None:
    fed = Fed(numbered=numbered)
    fed.announce(6, 7)
    fed.announce(0, number=1008)
    fed.pixels(6)
    fed.pixels(0, number=1008)
    assert fed.complete == [6]
    fed.pixels(7)
    assert fed.complete == [6, 7, 0]


def test_pixels_whose_metadata_are_filtered_out_are_forgotten() -> None:
    fed = Fed()
    fed.pixels(*range(1, 100))
    fed.announce(50, 99)
    assert fed.complete == [50, 99]
    fed.pixels(*range(100, 100 + 2 * QUEUE_SIZE))
    assert fed.sync.n_late == QUEUE_SIZE


def test_an_image_leaves_when_more_wait_than_the_queue_holds() -> None:
    fed = Fed()
    fed.announce(*range(QUEUE_SIZE + 1))
    assert fed.lost == [0]
    assert fed.sync.longest_queue == QUEUE_SIZE + 1


def test_without_marks_an_image_that_waited_for_almost_a_ring_counts_as_overwritten() -> None:
    fed = Fed(numbered=False)
    fed.announce(1, N_SLOTS - 10)
    fed.pixels(N_SLOTS - 10, mark=0)
    fed.pixels(1, mark=0)
    assert fed.complete == [1, N_SLOTS - 10]
    assert [image.metadata.status for image in fed.images] == [ID_MISSMATCH, 1]


def test_a_lost_image_keeps_its_status_while_its_slot_is_not_used_again() -> None:
    fed = Fed()
    fed.announce(*range(2 * MARGIN))
    fed.wait(2 * TIMEOUT_S)
    assert fed.lost == [*range(2 * MARGIN)]
    assert {image.metadata.status for image in fed.images} == {1}
    fed.announce(3000)
    fed.pixels(3000 + N_SLOTS)
    fed.wait(2 * TIMEOUT_S)
    assert fed.images[-1].metadata.status == ID_MISSMATCH


@given(st.data())
def test_any_interleaving_announces_exactly_the_images_whose_pixels_came(data: st.DataObject) -> None:
    n_pairs, n_images = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 16))
    arriving = [image_id for image_id in range(n_images) if data.draw(st.integers(0, 4))]
    streams = [[("pixels", i) for i in arriving if i % n_pairs == pair] for pair in range(n_pairs)]
    streams.append([("announce", i) for i in range(n_images)])
    fed = Fed(n_pairs, numbered=data.draw(st.booleans()))
    while waiting := [stream for stream in streams if stream]:
        kind, image_id = data.draw(st.sampled_from(waiting)).pop(0)
        getattr(fed, kind)(image_id)
    fed.wait(2 * TIMEOUT_S)
    assert fed.complete == arriving
    assert [image.image_id for image in fed.images] == [*range(n_images)]
    assert fed.sync.n_waiting == 0
