"""Images of a std_daq source (C++), which have no numbers, through pairs of which some are behind. No I/O."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stddaq.dataplane.metadata import ImageMetadata
from stddaq.forwarding.part_sync import PartSync
from stddaq.forwarding.pixel_sync import PixelSync

TIMEOUT_S = 1.0


class Pairs:
    """A synchroniser of whole images or of parts, and what each pair has sent and not delivered yet.

    The mark of a part is 1 + the run of the image, times 1000, + its id.
    """

    def __init__(self, n_pairs: int, *, whole: bool, numbered: bool = True) -> None:
        """`numbered`: senders of stddaq, which number their messages."""
        self.sync = PixelSync(n_pairs, 1000, 0.1) if whole else PartSync(n_pairs, 1000, TIMEOUT_S)
        self.n_pairs, self._numbered = n_pairs, numbered
        # The last one is the metadata stream.
        self._messages = [0] * (n_pairs + 1)
        self.waiting: list[list[ImageMetadata]] = [[] for _ in range(n_pairs + 1)]
        self._now = 100.0
        self.complete: list[tuple[int, int]] = []
        self.wrong: list[tuple[int, set[int]]] = []

    def publish(self, run: int, image_id: int) -> None:
        """Have every sender send its message of an image."""
        whole = isinstance(self.sync, PixelSync)
        senders = [image_id % self.n_pairs, self.n_pairs] if whole else range(self.n_pairs)
        for sender in senders:
            metadata = ImageMetadata(image_id=image_id, status=1)  # pyright: ignore[reportArgumentType]
            self._messages[sender] += 1
            metadata.forwarding.message = self._messages[sender] * self._numbered
            metadata.forwarding.pair, metadata.forwarding.mark = sender + 1, 1000 * (run + 1) + image_id
            self.waiting[sender].append(metadata)

    def deliver(self, sender: int) -> None:
        """Have the synchroniser receive the next message of a sender."""
        metadata = self.waiting[sender].pop(0)
        self._now += 0.0001
        if isinstance(self.sync, PartSync):
            self.sync.add(metadata, self._now)
        elif sender == self.n_pairs:
            # Its mark says which image it is.
            metadata.checksum = metadata.forwarding.mark
            self.sync.add_metadata(metadata, self._now)
        else:
            self.sync.add_pixels(metadata, self._now)
        self.wait(0)

    def deliver_all(self, *but: int) -> None:
        for sender, messages in enumerate(self.waiting):
            while messages and sender not in but:
                self.deliver(sender)

    def wait(self, seconds: float) -> None:
        self._now += seconds
        for image in self.sync.take(self._now):
            if isinstance(self.sync, PartSync):
                marks, is_lost = {mark for _, mark in image.marks}, bool(image.lacking)  # pyright: ignore
            else:
                marks, is_lost = {image.mark, image.metadata.checksum}, image.is_lost  # pyright: ignore
            if is_lost:
                continue
            self.complete.append((min(marks) // 1000 - 1, min(marks) % 1000))
            if len(marks) > 1:
                self.wrong.append((min(marks) % 1000, marks))


@pytest.mark.parametrize("numbered", [True, False])
@pytest.mark.parametrize("whole", [True, False])
def test_what_a_pair_that_hung_delivers_after_a_restart_is_never_part_of_a_new_image(
    whole: bool, numbered: bool
) -> None:
    pairs = Pairs(3, whole=whole, numbered=numbered)
    for image_id in range(1, 11):
        pairs.publish(0, image_id)
    pairs.deliver_all()
    for run, ids in [(0, range(11, 21)), (1, range(1, 12)), (1, range(12, 13))]:
        for image_id in ids:
            pairs.publish(run, image_id)
        pairs.deliver_all(1)
        pairs.wait(2 * TIMEOUT_S if ids[-1] != 12 else 0)
    pairs.deliver_all()
    for image_id in range(13, 30):
        pairs.publish(1, image_id)
        pairs.deliver_all()
        pairs.wait(0.2)
    assert not pairs.wrong
    assert pairs.complete[-3:] == [(1, 27), (1, 28), (1, 29)]


@pytest.mark.parametrize("numbered", [True, False])
@pytest.mark.parametrize("n_before", [1, 2, 5])
def test_pairs_without_an_image_in_a_short_run_lose_none_in_the_next(n_before: int, numbered: bool) -> None:
    pairs = Pairs(8, whole=True, numbered=numbered)
    runs = [(run, image_id) for run, n in enumerate((n_before, 1, 20)) for image_id in range(1, n + 1)]
    for run, image_id in runs:
        if image_id == 1:
            pairs.wait(2 * TIMEOUT_S)
        pairs.publish(run, image_id)
        pairs.deliver_all()
    assert pairs.complete == runs


@pytest.mark.parametrize("whole", [True, False])
def test_a_pair_that_was_away_during_a_restart_takes_part_at_once(whole: bool) -> None:
    pairs = Pairs(3, whole=whole)
    for run, ids in [(0, range(1, 21)), (1, range(1, 14))]:
        for image_id in ids:
            pairs.publish(run, image_id)
            if (run, image_id) > (0, 10):
                pairs.waiting[1].clear()
            pairs.deliver_all()
        pairs.wait(2 * TIMEOUT_S)
    for image_id in range(14, 17):
        pairs.publish(1, image_id)
    pairs.deliver_all()
    assert pairs.complete[-3:] == [(1, 14), (1, 15), (1, 16)]


def test_pixels_that_may_belong_to_two_runs_are_ambiguous_not_repeated() -> None:
    pairs = Pairs(2, whole=True)
    pairs.publish(0, 1)
    pairs.publish(0, 2)
    # Without it, the numbers of pair 0 do not say which run its next image belongs to.
    pairs.waiting[2].pop()
    pairs.deliver_all()
    for run, n_images in ((1, 4), (2, 2)):
        for image_id in range(1, n_images + 1):
            pairs.publish(run, image_id)
            pairs.deliver_all(0)
    pairs.waiting[0].pop(0)
    pairs.deliver_all()
    assert (pairs.sync.n_ambiguous, pairs.sync.n_repeated) == (1, 0)
    assert not pairs.wrong
    assert pairs.complete[-1] == (2, 2)


@given(st.data())
def test_no_interleaving_of_pairs_that_hang_mixes_the_parts_of_two_images(data: st.DataObject) -> None:
    n_pairs = data.draw(st.integers(1, 4))
    pairs = Pairs(n_pairs, whole=False)
    pairs.publish(0, 1)
    pairs.deliver_all()
    for run in range(1, data.draw(st.integers(2, 4))):
        for image_id in range(1, data.draw(st.integers(1, 12)) + 1):
            pairs.publish(run, image_id)
    hung = data.draw(st.integers(0, n_pairs))
    while any(pairs.waiting):
        senders = [sender for sender, messages in enumerate(pairs.waiting) if messages]
        if hung not in senders or senders == [hung] or not data.draw(st.integers(0, 9)):
            hung = -1
        pairs.deliver(data.draw(st.sampled_from([sender for sender in senders if sender != hung])))
        if not data.draw(st.integers(0, 5)):
            pairs.wait(2 * TIMEOUT_S)
    assert not pairs.wrong
