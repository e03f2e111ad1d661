"""The verdict on a copy and its time, with a fake ring, fake ids and a fake clock."""

from __future__ import annotations

from typing import Any

import pytest

from stddaq.dataplane.metadata import ImageMetadata
from stddaq.dataplane.ring_layout import CODE_SHIFT, ring_code
from stddaq.dataplane.ring_reader import ENDED_HOLD_S, REACH_LIMIT_S, HeldImages, RingReader

HOLD_S = 0.05
OF_THIS_RING = ring_code("GF2-image") << CODE_SHIFT
OF_ANOTHER_RING = ring_code("GF2-blosc2") << CODE_SHIFT


class FakeRing:
    """A ring of four slots; `stamps` are the sequence numbers of its cursor."""

    def __init__(self) -> None:
        self.sequence, self.stamps = 0, [0] * 4
        self.replaced = False
        self.claimed = 0

    def claim(self) -> None:
        self.claimed = self.sequence

    def is_claimed(self, sequence: int) -> bool:
        return sequence <= self.claimed

    def holds(self, image_id: int, sequence: int) -> bool:
        return self.stamps[image_id % 4] == sequence

    def is_replaced(self) -> bool:
        return self.replaced


class FakeIds:
    """Published ids: `arriving` become known when the reader catches up."""

    def __init__(self) -> None:
        self.hold = HOLD_S
        self.arriving: set[int] = set()
        self.suspects: set[int] = set()
        self.judged: list[int] = []
        self.unreached: set[int] = set()
        self.has_unnumbered = False

    def catch_up(self) -> None:
        self.suspects |= self.arriving

    def has_reached(self, metadata: ImageMetadata) -> bool:
        return metadata.image_id not in self.unreached

    def is_suspect(self, metadata: ImageMetadata) -> bool:
        self.judged.append(metadata.image_id)
        return metadata.image_id in self.suspects


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Bench:
    """A ring reader with fake ring, ids and clock."""

    def __init__(self) -> None:
        # Skip __init__, which attaches to shared memory and opens a socket.
        reader: Any = RingReader.__new__(RingReader)
        self.ring, self.ids, self.clock = FakeRing(), FakeIds(), Clock()
        reader.ring, reader.published_ids = self.ring, self.ids
        reader._ring_code = ring_code("GF2-image")
        self.reader: RingReader = reader
        self.held = HeldImages[str](reader, self.clock, self.clock.sleep)

    def copy(self, name: str, *image_ids: int) -> None:
        self.held.add(name, [ImageMetadata(image_id=i) for i in image_ids], self.clock.now)

    def released(self, *, wait: bool = False) -> list[tuple[str, list[bool]]]:
        return [(name, list(verdict)) for name, verdict in self.held.release(wait=wait)]


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.mark.parametrize(
    ("sequence", "expected"),
    [(0, False), (7, False), (OF_THIS_RING + 7, True), (OF_ANOTHER_RING + 7, False)],
    ids=["none", "of no ring", "of this ring", "of another ring"],
)
def test_cursor_alone_judges_every_image_with_a_sequence_of_its_ring(
    bench: Bench, sequence: int, expected: bool
) -> None:
    assert bench.reader.has_cursor_for(ImageMetadata(image_id=1, sequence=sequence)) == expected


def test_rings_have_different_sequence_numbers() -> None:
    suffixes, detectors = ("image", "h5bitshuffle-lz4", "blosc2"), ("GF2", "REPLAY-GF2")
    codes = {ring_code(f"{detector}-{suffix}") for suffix in suffixes for detector in detectors}
    assert len(codes) == 6
    assert all(0 < code < 4096 for code in codes)


def test_slot_holds_an_image_until_its_sequence_number_changes(bench: Bench) -> None:
    image = ImageMetadata(image_id=5, sequence=9)
    assert not bench.reader.holds(image)
    bench.ring.stamps[1] = 9
    assert bench.reader.holds(image)
    bench.ring.stamps[1] = 0
    assert not bench.reader.holds(image)


def test_copy_is_released_after_the_hold_time_and_not_before(bench: Bench) -> None:
    bench.copy("a", 1)
    assert bench.held.due_in == pytest.approx(HOLD_S)
    bench.clock.now += HOLD_S - 0.001
    assert bench.released() == []
    bench.clock.now += 0.002
    assert bench.held.due_in == 0
    assert bench.released() == [("a", [False])]
    assert bench.held.due_in == float("inf")


def test_ids_published_during_the_hold_time_count(bench: Bench) -> None:
    bench.copy("a", 1, 2, 3)
    assert bench.released() == []
    bench.ids.arriving = {2}
    bench.clock.now += HOLD_S
    assert bench.released() == [("a", [False, True, False])]
    assert bench.ids.judged == [1, 2, 3]


def test_ids_published_during_the_wait_for_earlier_copies_count(bench: Bench) -> None:
    bench.copy("a", 1)
    bench.clock.now += HOLD_S / 2
    bench.copy("b", 2)
    released = bench.held.release(wait=True)
    assert next(released)[0] == "a"
    bench.ids.arriving = {2}
    assert list(next(released)[1]) == [True]


def test_waiting_releases_all_in_order_after_their_hold_times(bench: Bench) -> None:
    start = bench.clock.now
    bench.copy("a", 1)
    bench.clock.now += HOLD_S / 2
    bench.copy("b", 2)
    assert [name for name, _ in bench.released(wait=True)] == ["a", "b"]
    assert bench.clock.now - start == pytest.approx(1.5 * HOLD_S)
    assert not bench.held


def test_copy_with_a_known_verdict_waits_only_for_earlier_copies(bench: Bench) -> None:
    bench.held.add_judged("first", [True])
    bench.copy("a", 1)
    bench.held.add_judged("last", [False])
    assert bench.released() == [("first", [True])]
    bench.clock.now += HOLD_S
    assert bench.released() == [("a", [False]), ("last", [False])]


def test_first_ids_of_the_source_shorten_the_hold_time(bench: Bench) -> None:
    bench.ids.hold = 10.0
    bench.copy("a", 1)
    assert bench.released() == []
    bench.ids.hold = HOLD_S
    bench.clock.now += HOLD_S
    assert [name for name, _ in bench.released()] == ["a"]


def test_copies_from_a_ring_that_was_replaced_are_overwritten_at_once(bench: Bench) -> None:
    bench.ring.replaced = True
    bench.copy("a", 1, 2)
    assert bench.released() == [("a", [True, True])]


SEQUENCES = [OF_THIS_RING + 1, OF_THIS_RING + 2]


@pytest.fixture
def ended(bench: Bench) -> Bench:
    """A ring whose source has ended; a copy of its two images is held."""
    images = [ImageMetadata(image_id=i, sequence=sequence) for i, sequence in enumerate(SEQUENCES)]
    bench.ring.sequence = SEQUENCES[-1]
    bench.held.add("a", images, bench.clock.now, [False, True])
    return bench


def test_images_of_a_source_that_has_ended_are_held_and_good(ended: Bench) -> None:
    assert ended.released() == []
    ended.clock.now += ENDED_HOLD_S
    assert ended.released() == [("a", [False, True])]
    assert not ended.ids.judged


def test_images_of_a_source_that_has_ended_are_overwritten_once_another_source_announces(
    ended: Bench,
) -> None:
    assert ended.released() == []
    ended.ids.has_unnumbered = True
    ended.clock.now += ENDED_HOLD_S
    assert ended.released() == [("a", [True, True])]


def test_images_of_a_source_that_has_ended_are_held_while_messages_wait(ended: Bench) -> None:
    ended.held.read_until = ended.clock.now
    ended.clock.now += ENDED_HOLD_S
    assert ended.released() == []
    ended.held.read_until = ended.clock.now - 0.001
    assert ended.released() == []
    # One of the messages is of another source.
    ended.ring.claim()
    assert ended.released() == [("a", [True, True])]


def test_dropped_copies_are_returned_in_order(bench: Bench) -> None:
    bench.copy("a", 1)
    bench.held.add_judged("b", [False])
    assert bench.held.drop() == ["a", "b"]
    assert not bench.held


def test_copy_waits_for_the_announcement_of_its_image_from_the_source(bench: Bench) -> None:
    bench.ids.unreached = {1}
    bench.copy("a", 1)
    bench.clock.now += HOLD_S + 0.1
    assert bench.released() == []
    bench.ids.unreached, bench.ids.arriving = set(), {1}
    assert bench.released() == [("a", [True])]


@pytest.mark.parametrize("wait", [True, False])
def test_image_whose_announcement_does_not_arrive_is_overwritten_after_a_bounded_time(
    bench: Bench, wait: bool
) -> None:
    bench.ids.unreached = {2}
    bench.copy("a", 1, 2, 3)
    if not wait:
        bench.clock.now += HOLD_S + REACH_LIMIT_S
    assert bench.released(wait=wait) == [("a", [False, True, False])]
    assert bench.clock.now <= 100 + HOLD_S + REACH_LIMIT_S + 0.01
