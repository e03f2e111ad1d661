"""The queue releases images in order, and none that another image can still precede."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stddaq.files.growing_run import Images, in_order
from stddaq.files.raw_rows import RawDatasets
from stddaq_ophyd.core.ready_images import ReadyImages
from stddaq_ophyd.core.run_counts import RunCounts

FILES = tuple(
    RawDatasets(Path(f"/data/file{i}.h5"), "/det", (2, 3), np.dtype("<u2"), np.dtype("<u8"), "run")
    for i in range(2)
)


def readable(first: tuple[int, ...], *ids: list[int]) -> Images | None:
    """Return the images of rows from `first` on, with the ids of each file."""
    return in_order(FILES, first, [np.array(of_file, np.uint64) for of_file in ids])


def counts(*rows: int, **others: Any) -> RunCounts:
    """Return the counts of a driver that has sent `rows` images to each writer."""
    return RunCounts(n_images=sum(rows), rows=rows, **others)


def ids_of(images: Images) -> list[int]:
    return images.ids.tolist()


def test_images_of_all_files_come_out_in_the_order_of_their_ids():
    images = ReadyImages(counts(0, 0), 5, may_restart=False)
    images.feed(readable((0, 0), [0, 2, 4], [1, 3]), counts(3, 2))
    assert images.is_complete
    assert ids_of(images.take(5)) == [0, 1, 2, 3, 4]


def test_images_wait_for_an_earlier_one_that_is_sent_and_not_readable_yet():
    images = ReadyImages(counts(0, 0), 5, may_restart=False)
    images.feed(readable((0, 0), [0], [1, 3]), counts(3, 2))
    assert (images.n_ready, images.next_rows) == (1, (1, 0))
    images.feed(readable((1, 0), [2, 4], [1, 3]), counts(3, 2))
    assert (images.n_ready, images.next_rows) == (5, (3, 2))
    assert ids_of(images.take(5)) == [0, 1, 2, 3, 4]


def test_images_beyond_the_requested_ones_stay_in_the_files():
    images = ReadyImages(counts(0, 0), 3, may_restart=False)
    images.feed(readable((0, 0), [0, 2, 4], [1, 3]), counts(3, 2))
    assert (images.n_ready, images.next_rows) == (3, (2, 1))


def test_images_are_taken_in_parts_and_counted():
    images = ReadyImages(counts(0, 0), 5, may_restart=False)
    images.feed(readable((0, 0), [0, 2], [1]), counts(2, 1))
    assert ids_of(images.take(2)) == [0, 1]
    images.feed(readable((2, 1), [4], [3]), counts(3, 2))
    assert (images.n_ready, images.n_taken) == (5, 2)
    assert ids_of(images.take(3)) == [2, 3, 4]


def test_rows_before_the_queue_began_are_left_out():
    images = ReadyImages(counts(7, 7), 2, may_restart=False)
    images.feed(readable((7, 7), [14], [15]), counts(8, 8))
    assert images.take(2).rows.tolist() == [7, 7]


def test_ids_that_restart_within_a_file_need_closed_files():
    images = ReadyImages(counts(0, 0), 4, may_restart=True)
    images.feed(readable((0, 0), [0, 2, 0], [1]), counts(3, 1, n_restarts=1))
    assert not images.is_ordered
    assert images.n_ready == 0


def test_a_restart_needs_closed_files_in_a_flight():
    images = ReadyImages(counts(4, 4, n_restarts=1), 4, may_restart=False)
    images.feed(readable((4, 4), [0, 2], [1, 3]), counts(6, 6, n_restarts=2))
    assert not images.is_ordered


def test_a_restart_with_the_first_image_of_a_point_keeps_the_order():
    images = ReadyImages(counts(4, 4), 4, may_restart=True)
    images.feed(readable((4, 4), [0, 2], [1, 3]), counts(6, 6, n_restarts=1))
    assert ids_of(images.take(4)) == [0, 1, 2, 3]


def test_a_restart_within_a_point_leaves_a_gap_that_the_driver_did_not_count():
    images = ReadyImages(counts(4, 4), 3, may_restart=True)
    images.feed(readable((4, 4), [8, 9], [0]), counts(6, 5, n_restarts=1))
    assert not images.is_ordered


def test_counted_gaps_after_a_restart_keep_the_order():
    images = ReadyImages(counts(4, 4), 3, may_restart=True)
    images.feed(readable((4, 4), [0, 3], [1]), counts(6, 5, n_restarts=1, n_skipped=1))
    assert ids_of(images.take(3)) == [0, 1, 3]


def test_closed_files_complete_the_queue():
    images = ReadyImages(counts(0, 0), 4, may_restart=False)
    images.feed(readable((0, 0), [0], [1]), counts(1, 1))
    images.feed(None, counts(2, 2, n_restarts=1))
    closed = readable(images.next_rows, [2, 4], [3])
    assert closed is not None
    images.feed_closed(closed)
    assert images.is_complete
    assert ids_of(images.take(4)) == [0, 1, 2, 3]


@pytest.mark.parametrize("last_id", [None, 2])
def test_higher_ids_before_the_first_one_that_the_camera_named_are_early(last_id: int | None):
    images = ReadyImages(counts(4, 4), 3, may_restart=True, first_id=0, last_id=last_id)
    images.feed(readable((4, 4), [100, 102], [101, 103]), counts(6, 6, n_skipped=97))
    assert (images.n_early, images.n_ready) == (4, 0)
    images.feed(None, counts(8, 7, n_restarts=1, n_skipped=97))
    closed = readable(images.next_rows, [0, 2], [1])
    assert closed is not None
    images.feed_closed(closed)
    assert ids_of(images.take(3)) == [0, 1, 2]


def test_ids_above_a_lower_one_begin_the_images_when_the_first_is_missing():
    images = ReadyImages(counts(4, 4), 2, may_restart=True, first_id=8, last_id=7)
    images.feed(readable((4, 4), [9], [10]), counts(5, 5, n_skipped=1))
    assert ids_of(images.take(2)) == [9, 10]
    assert images.bad_until(counts(5, 5, n_skipped=1)) == {"skipped": 1}
    images = ReadyImages(counts(4, 4), 2, may_restart=True, first_id=8)
    images.feed(readable((4, 4), [6, 9], [10]), counts(6, 5, n_skipped=2))
    assert (images.n_early, ids_of(images.take(2))) == (1, [9, 10])
    assert images.bad_until(counts(6, 5, n_skipped=2)) == {"skipped": 1}


def test_ids_skipped_before_the_first_wanted_image_are_not_bad():
    images = ReadyImages(counts(4, 4), 2, may_restart=False, first_id=12, last_id=5)
    images.feed(readable((4, 4), [9, 14], [12]), counts(6, 5, n_skipped=6))
    assert (images.n_early, ids_of(images.take(2))) == (1, [12, 14])
    assert images.bad_until(counts(6, 5, n_skipped=6, n_damaged=1)) == {"damaged": 1, "skipped": 1}


def test_a_driver_without_rows_is_served_by_closed_files_only():
    images = ReadyImages(RunCounts(), 2, may_restart=True)
    assert images.next_rows == ()
    closed = readable((0, 0), [0], [1])
    assert closed is not None
    images.feed_closed(closed)
    assert ids_of(images.take(2)) == [0, 1]


def test_bad_images_since_a_mark_are_counted_by_kind():
    before = RunCounts(n_damaged=1, n_skipped=2)
    after = RunCounts(n_damaged=3, n_skipped=2, n_failed=1)
    assert after.bad_since(before) == {"damaged": 2, "failed": 1}
    assert (after.n_bad, before.bad_since(before)) == (6, {})
