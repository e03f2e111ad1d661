"""Which images are complete, incomplete, late, repeated: the synchroniser's table of faults, without I/O."""

from __future__ import annotations

import itertools
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stddaq.dataplane.metadata import GOOD_IMAGE, ID_MISSMATCH, MISSING_PACKETS
from stddaq.udp.frame_message import BY_CONVERTER, IN_ORDER
from stddaq.udp.module_sync import QUEUE_GRACE_S, ModuleImage, ModuleSync

N_SLOTS = 1000
MARK = IN_ORDER | BY_CONVERTER | 1
Left = tuple[int, int, tuple[int, ...]]


def frame(
    image_id: int,
    module: int,
    *,
    missing: int = 0,
    mark: int = MARK,
    link_set: int = 0,
    scan: int = 0,
    received: float = 0.0,
) -> bytes:
    """Return a message; `received` in s, 0: not known."""
    received_ns = round(received * 1e9)
    return struct.pack("<QQH4xBxI22xQ2xI", image_id, missing, module, link_set, scan, received_ns, mark)


class Fed:
    """A `ModuleSync` and what has left it: (id, status, lacking modules)."""

    def __init__(self, n_modules: int = 2, queue_size: int = 50, *, is_gigafrost: bool = False) -> None:
        self.sync = ModuleSync(
            range(n_modules), n_modules, queue_size, N_SLOTS, is_gigafrost=is_gigafrost, timeout=1.0
        )
        self.now = 0.0
        self.images: list[ModuleImage] = []

    def add(self, image_id: int, *modules: int, **options: Any) -> None:
        for module in modules:
            if self.sync.add(frame(image_id, module, **options), self.now):
                self.images += self.sync.take(float("-inf"))

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.images += self.sync.take(self.now)

    @property
    def left(self) -> list[Left]:
        return [(image.image_id, image.status, tuple(image.lacking)) for image in self.images]

    @property
    def complete(self) -> list[int]:
        return [image.image_id for image in self.images if not image.lacking]


def good(*ids: int) -> list[Left]:
    return [(image_id, GOOD_IMAGE, ()) for image_id in ids]


def test_an_image_leaves_when_its_last_module_arrives() -> None:
    fed = Fed(n_modules=3)
    fed.add(7, 2, 0)
    assert not fed.images
    fed.add(8, 0, 2)
    fed.add(7, 1)
    assert fed.left == good(7)
    fed.add(8, 1)
    assert fed.left == good(7, 8)
    assert fed.sync.n_waiting == 0


@pytest.mark.parametrize("module", [0, 1, 2])
def test_packets_lost_by_any_module_make_the_image_incomplete(module: int) -> None:
    fed = Fed(n_modules=3)
    for other in range(3):
        fed.add(7, other, missing=4 * (other == module))
    assert fed.left == [(7, MISSING_PACKETS, ())]


def test_a_second_message_of_a_module_is_counted_and_ignored() -> None:
    fed = Fed()
    fed.add(7, 0, 0, mark=0)
    fed.add(7, 1, mark=0)
    fed.add(7, 1, mark=0)
    fed.add(8, 0, 1, mark=0)
    assert fed.left == good(7, 8)
    assert fed.sync.n_repeated == 2


def test_a_late_message_of_a_cpp_receiver_holds_nothing_back() -> None:
    fed = Fed()
    for image_id in (6, 7, 8):
        fed.add(image_id, 0, 1, mark=0)
    fed.add(7, 0, mark=0)
    fed.add(9, 0, 1, mark=0)
    assert fed.left == good(6, 7, 8, 9)
    assert fed.sync.n_repeated + fed.sync.n_late == 1


def test_a_frame_that_arrives_after_its_image_was_given_up_is_late() -> None:
    fed = Fed()
    fed.add(7, 0)
    fed.wait(1.0)
    fed.add(7, 1)
    fed.add(8, 0, 1)
    assert fed.left == [(7, MISSING_PACKETS, (1,)), *good(8)]
    assert fed.sync.n_late == 1


def test_an_image_is_given_up_when_all_modules_that_it_lacks_have_sent_a_later_one() -> None:
    fed = Fed(n_modules=3)
    fed.add(7, 0)
    fed.add(8, 0, 1)
    assert not fed.images
    fed.add(8, 2)
    assert fed.left == [(7, MISSING_PACKETS, (1, 2)), *good(8)]
    assert fed.sync.n_lost == {1: 1, 2: 1}
    assert fed.sync.n_incomplete == 1


def test_the_last_image_of_a_run_is_given_up_after_the_timeout() -> None:
    fed = Fed()
    fed.add(7, 0)
    assert fed.sync.due_at == 1.0
    fed.wait(0.99)
    assert not fed.images
    fed.wait(0.01)
    assert fed.left == [(7, MISSING_PACKETS, (1,))]
    assert fed.sync.due_at == float("inf")


def test_no_image_waits_longer_than_the_timeout_for_those_before_it() -> None:
    fed = Fed()
    fed.add(9, 0)
    fed.wait(0.9)
    fed.add(8, 1)
    fed.wait(0.1)
    assert [image_id for image_id, _, _ in fed.left] == [8, 9]


def test_a_dead_module_holds_nothing_back_longer_than_the_timeout_and_nothing_is_complete() -> None:
    fed = Fed()
    for image_id in range(30):
        fed.add(image_id, 0)
        fed.wait(0.1)
    assert fed.complete == []
    assert 19 <= len(fed.images) <= 21
    assert fed.sync.n_lost[1] == len(fed.images)


def test_the_lowest_image_leaves_when_too_many_wait() -> None:
    fed = Fed(queue_size=3)
    for image_id in range(4):
        fed.add(image_id, 0)
    assert fed.left == []
    assert fed.sync.due_at == QUEUE_GRACE_S
    fed.wait(QUEUE_GRACE_S)
    assert fed.left == [(0, MISSING_PACKETS, (1,))]
    assert fed.sync.n_waiting == 3


def test_all_messages_of_one_module_may_arrive_before_those_of_another() -> None:
    fed = Fed(queue_size=3)
    for module in (0, 1):
        for image_id in range(20):
            fed.add(image_id, module)
    assert fed.left == good(*range(20))


def test_no_more_images_wait_than_the_ring_has_slots() -> None:
    fed = Fed(queue_size=3)
    for image_id in range(N_SLOTS + 2):
        fed.add(image_id, 0)
    assert fed.left == [(0, MISSING_PACKETS, (1,)), (1, MISSING_PACKETS, (1,))]
    assert fed.sync.n_waiting == N_SLOTS


@pytest.mark.parametrize("mark", [MARK, 1, 0], ids=["stddaq", "C++ converter", "C++"])
def test_ids_that_restart_are_announced_at_once(mark: int) -> None:
    fed = Fed()
    for image_id in [*range(5), *range(5)]:
        fed.add(image_id, 0, 1, mark=mark)
    assert fed.left == good(0, 1, 2, 3, 4, 0, 1, 2, 3, 4)
    assert fed.sync.n_restarts == 1


@pytest.mark.parametrize("has_times", [True, False])
def test_modules_may_restart_at_different_times(has_times: bool) -> None:
    fed = Fed()
    for module in (0, 1):
        for start in (10.0, 20.0):
            for image_id in range(3):
                fed.add(image_id, module, received=(start + image_id / 100) * has_times)
    # The frames of module 1 may be of the second acquisition, if nothing is known about them.
    first = GOOD_IMAGE if has_times else ID_MISSMATCH
    assert [(image_id, status) for image_id, status, _ in fed.left] == [
        *((image_id, first) for image_id in range(3)),
        *((image_id, GOOD_IMAGE) for image_id in range(3)),
    ]
    assert fed.sync.n_incomplete == 0
    assert fed.sync.n_doubtful == (0 if has_times else 3)


def test_a_module_that_was_away_during_restarts_takes_part_again_within_the_timeout() -> None:
    fed = Fed()
    fed.add(0, 0, 1)
    for _ in range(3):
        fed.add(0, 0)
        fed.add(1, 0)
        fed.wait(0.1)
    assert fed.complete == [0]
    fed.wait(1.1)
    fed.add(50, 0, 1)
    assert fed.complete == [0, 50]


def test_an_acquisition_of_one_image_may_follow_another_one() -> None:
    fed = Fed()
    for _ in range(3):
        fed.add(1, 0, 1)
    assert fed.complete == [1, 1, 1]


def test_a_scan_of_one_image_may_follow_another_one_of_cpp_receivers() -> None:
    fed = Fed(is_gigafrost=True)
    for scan in (1, 2, 3):
        fed.add(0, 0, 1, scan=scan, mark=0)
    assert fed.complete == [0, 0, 0]


# Module 1 lacks frames at the end of scan 1 and at the start of scan 2. Marks of frames have the scan.
@pytest.mark.parametrize("last", [0, 1, 2])
@pytest.mark.parametrize("first", [1, 2, 3])
@pytest.mark.parametrize("mark", [IN_ORDER | BY_CONVERTER, BY_CONVERTER], ids=["stddaq", "C++ receiver"])
def test_no_image_has_frames_of_two_scans(last: int, first: int, mark: int) -> None:
    fed = Fed(is_gigafrost=True)
    for image_id in (1, 2, 3):
        fed.add(image_id, 0, scan=1, mark=mark | 1)
        if image_id <= last:
            fed.add(image_id, 1, scan=1, mark=mark | 1)
    for image_id in (1, 2, 3):
        fed.add(image_id, 0, scan=2, mark=mark | 2)
        if image_id >= first:
            fed.add(image_id, 1, scan=2, mark=mark | 2)
    fed.wait(1.1)
    scans = [{mark & 3 for _, mark in image.marks} for image in fed.images if not image.lacking]
    assert all(len(of_image) == 1 for of_image in scans)
    if mark & IN_ORDER:
        # C++ receivers do not say that their ids restart: an image may be missing.
        assert scans == [{1}] * last + [{2}] * (4 - first)


# Module 1 lacks frames at the end of the first acquisition and at the start of the second; module 0 may lack
# the start of the second, so that it shows no restart. The second acquisition starts `pause` after the first.
@pytest.mark.parametrize("last", [0, 1, 2])
@pytest.mark.parametrize("first", [1, 2, 3])
@pytest.mark.parametrize(
    ("first_of_0", "pause"),
    # Without a restart, 0.03 s are too short for image 3, the last one of module 0.
    [case for case in itertools.product((1, 2, 3, 4), (0.03, 0.1, 1.5)) if case != (4, 0.03)],
)
def test_no_good_image_has_frames_of_two_acquisitions(
    last: int, first: int, first_of_0: int, pause: float
) -> None:
    fed = Fed()
    acquisition_of: dict[int, int] = {}
    mark = IN_ORDER | BY_CONVERTER
    for acquisition in (0, 1):
        start = 10.0 + acquisition * (0.03 + pause)
        for image_id in range(1, 6):
            for module in (0, 1):
                lost = (image_id < first_of_0, image_id < first) if acquisition else (False, image_id > last)
                at = start + image_id / 100
                fed.wait(max(0.0, at - fed.now))
                if (acquisition or image_id <= 3) and not lost[module]:
                    mark += 1
                    acquisition_of[mark] = acquisition
                    fed.add(image_id, module, received=at + module / 1000, mark=mark)
    fed.wait(1.1)
    acquisitions = {
        (image.image_id, *sorted({acquisition_of[mark] for _, mark in image.marks}))
        for image in fed.images
        if image.status == GOOD_IMAGE
    }
    assert all(len(of_image) == 2 for of_image in acquisitions)
    assert acquisitions >= {(image_id, 0) for image_id in range(1, last + 1)}
    if pause >= 0.1:
        assert acquisitions >= {(image_id, 1) for image_id in range(max(first, first_of_0, 4), 6)}


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_interleaving_of_acquisitions_makes_a_good_image_of_two(data: st.DataObject) -> None:
    """Modules send in order, with losses, and converters deliver at any time."""
    n_modules, start = data.draw(st.integers(2, 3)), 10.0
    queues: list[list[tuple[int, int, float]]] = [[] for _ in range(n_modules)]
    for acquisition in range(data.draw(st.integers(2, 4))):
        for image_id in range(1, data.draw(st.integers(1, 6)) + 1):
            start += 0.01
            for module in range(n_modules):
                if data.draw(st.booleans()):
                    queues[module].append((image_id, acquisition, start + module / 1000))
        start += data.draw(st.sampled_from([0.11, 0.3, 2.0]))
    fed, mark = Fed(n_modules), IN_ORDER | BY_CONVERTER
    acquisition_of: dict[int, int] = {}
    while any(queues):
        module = data.draw(st.sampled_from([m for m in range(n_modules) if queues[m]]))
        image_id, acquisition, received = queues[module].pop(0)
        mark += 1
        acquisition_of[mark] = acquisition
        fed.wait(max(0.0, received - fed.now))
        fed.add(image_id, module, received=received, mark=mark)
    fed.wait(1.1)
    for image in fed.images:
        assert image.status != GOOD_IMAGE or len({acquisition_of[mark] for _, mark in image.marks}) == 1


def test_frames_of_one_image_that_are_received_far_apart_are_no_good_image() -> None:
    fed = Fed()
    fed.add(1, 0, received=10.0)
    fed.add(1, 1, received=10.11)
    fed.add(2, 0, received=20.0)
    fed.add(2, 1, received=20.09)
    assert fed.left == [(1, ID_MISSMATCH, ()), *good(2)]
    assert fed.sync.n_doubtful == 1


def test_a_converter_that_delivers_an_acquisition_late_adds_nothing_to_the_next_one() -> None:
    fed = Fed()
    for image_id in (1, 2, 3):
        fed.add(image_id, 0, received=10 + image_id / 100)
    fed.wait(1.1)
    for image_id in (1, 2, 3):
        fed.add(image_id, 0, received=12 + image_id / 100)
    fed.wait(2.0)
    for image_id in (1, 2, 3):
        fed.add(image_id, 1, received=10 + image_id / 100)
    assert fed.complete == []
    assert fed.sync.n_late == 3
    for image_id in (4, 5):
        fed.add(image_id, 0, 1, received=12 + image_id / 100)
    assert fed.complete == [4, 5]


@pytest.mark.parametrize("stray", [2, 45, 90, 500, 2**40])
def test_a_wrong_id_of_a_cpp_receiver_costs_no_image(stray: int) -> None:
    fed = Fed()
    for image_id in range(50, 60):
        fed.add(image_id, 0, 1, mark=0)
        if image_id == 54:
            fed.add(stray, 1, mark=0)
    assert fed.left == good(*range(50, 60))
    assert fed.sync.n_late == 1
    assert fed.sync.n_restarts == 0
    assert fed.sync.n_messages == 21


@pytest.mark.parametrize("first", [1, 3, 30])
def test_a_restart_of_cpp_receivers_needs_evidence_and_costs_no_image(first: int) -> None:
    fed = Fed()
    for image_id in [*range(1, 41), *range(first, first + 10)]:
        fed.add(image_id, 0, 1, mark=0)
    assert fed.left == good(*range(1, 41), *range(first, first + 10))
    assert fed.sync.n_restarts == 1
    assert (fed.sync.n_late, fed.sync.n_messages) == (0, 100)


def test_a_restart_of_cpp_receivers_needs_no_evidence_if_nothing_follows() -> None:
    fed = Fed()
    for image_id in (1, 2, 3, 2):
        fed.add(image_id, 0, 1, mark=0)
    assert fed.left == good(1, 2, 3)
    assert fed.sync.due_at == 0.5
    fed.wait(0.5)
    assert fed.left == good(1, 2, 3, 2)


@pytest.mark.parametrize("ids", [range(0, 2000, 100), [3, 5, 900, 1000, 7000, 7100, 7150, 20000, 20001]])
def test_ids_of_cpp_receivers_may_skip(ids: list[int]) -> None:
    fed = Fed()
    for image_id in ids:
        fed.add(image_id, 0, 1, mark=0)
    fed.wait(0.5)
    assert fed.left == good(*ids)
    assert (fed.sync.n_late, fed.sync.n_restarts) == (0, 0)


def test_a_scan_with_higher_ids_is_another_one() -> None:
    fed = Fed(is_gigafrost=True)
    fed.add(1, 0, 1, scan=1)
    fed.add(2, 0, scan=1, mark=MARK)
    fed.add(2, 1, scan=2)
    fed.add(3, 0, 1, scan=2)
    fed.wait(1.1)
    assert fed.complete == [1, 3]


def test_images_of_a_gigafrost_with_two_receivers_wait_for_the_right_one() -> None:
    fed = Fed(is_gigafrost=True)
    fed.add(10, 0, link_set=0)
    # Through the other receiver: says nothing about image 10.
    fed.add(11, 0, 1, link_set=1)
    assert not fed.images
    fed.add(10, 1, link_set=0)
    assert fed.complete == [10, 11]
    fed.add(12, 0, link_set=0)
    fed.add(14, 0, 1, link_set=0)
    assert fed.left[-2:] == [(12, MISSING_PACKETS, (1,)), *good(14)]


def test_an_image_without_marks_is_not_good_when_a_module_is_a_ring_ahead() -> None:
    fed = Fed(queue_size=2000)
    fed.add(5, 1, mark=0)
    for image_id in range(5, 5 + N_SLOTS):
        fed.add(image_id, 0, mark=0)
    # Frames of module 0 had arrived up to 949 images ahead before: within the margin.
    assert fed.left == [(5, GOOD_IMAGE, ())]
    fed = Fed(queue_size=2000)
    for image_id in range(5, 5 + N_SLOTS - 51):
        fed.add(image_id, 0, mark=0)
    fed.add(5, 1, mark=0)
    assert fed.left == good(5)
    fed.add(6 + N_SLOTS, 0, mark=0)
    fed.add(6, 1, mark=0)
    fed.add(7 + N_SLOTS, 0, mark=0)
    fed.add(7, 1, mark=0)
    assert fed.left[1:] == [(6, ID_MISSMATCH, ()), (7, ID_MISSMATCH, ())]


def test_messages_that_are_none_are_counted() -> None:
    sync = ModuleSync([0, 2], 4, 50, N_SLOTS, is_gigafrost=False)
    for message in (b"", b"1234567", bytes(65), frame(1, 3)):
        assert not sync.add(message, 0.0)
    assert sync.n_malformed == 4
    # Eight bytes are an id; the module is its number modulo `n_modules`.
    sync.add(struct.pack("<Q", 5), 0.0)
    assert sync.add(frame(5, 6), 0.0)
    assert [image.image_id for image in sync.take(0.0)] == [5]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_interleaving_of_modules_in_order_announces_every_image(data: st.DataObject) -> None:
    """Modules send in order, with losses. Images with all frames leave complete, in order."""
    n_modules = data.draw(st.integers(1, 4))
    ids = sorted(data.draw(st.sets(st.integers(0, 40), min_size=1, max_size=20)))
    lost = data.draw(st.sets(st.tuples(st.sampled_from(ids), st.integers(0, n_modules - 1)), max_size=8))
    queues = [[i for i in ids if (i, module) not in lost] for module in range(n_modules)]
    fed = Fed(n_modules)
    while any(queues):
        module = data.draw(st.sampled_from([m for m in range(n_modules) if queues[m]]))
        fed.add(queues[module].pop(0), module)
    fed.wait(1.0)
    seen = {i for i in ids if any((i, module) not in lost for module in range(n_modules))}
    expected = [i for i in ids if not any((i, module) in lost for module in range(n_modules))]
    assert [image.image_id for image in fed.images] == sorted(seen)
    assert fed.complete == expected
    assert (fed.sync.n_late, fed.sync.n_repeated) == (0, 0)
