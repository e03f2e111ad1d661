"""Statuses of a driver, and the queue in which they wait to be read."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stddaq.client.status import HISTORY_LIMIT, DriverStatus, StatusQueue, parse_status


def test_fields_that_a_basic_driver_does_not_send_are_none():
    status = parse_status('{"status": "recording", "count": 7}')
    assert status == DriverStatus("recording", count=7)
    assert status is not None
    assert status.n_bad is None
    assert status.is_busy


def test_status_of_the_stddaq_driver_is_complete():
    message = {
        "status": "error",
        "count": 3,
        "reason": "writer 1 vanished",
        "run_id": "abc",
        "n_image": 10,
        "n_skipped": 2,
        "n_overwritten": 1,
        "n_failed": 4,
        "writers": [{"writer": 0, "n_written": 2}, {"writer": 1, "n_written": 1}],
        "files": {"raw": ["/data/file0.h5"], "metadata": None, "master": None},
        "something": "new",
    }
    status = parse_status(json.dumps(message))
    assert status is not None
    assert (status.run_id, status.n_image, status.reason) == ("abc", 10, "writer 1 vanished")
    assert status.n_written == {0: 2, 1: 1}
    assert status.n_bad == 7
    assert status.n_skipped == 2
    assert status.is_end
    assert status.raw == message


@pytest.mark.parametrize("frame", ["", "5", "[]", "{}", '{"status": 5}', b"\xff\x00", "[" * 5000])
def test_a_frame_that_is_not_a_status_is_none(frame: str | bytes):
    assert parse_status(frame) is None


@pytest.mark.slow
@given(
    st.dictionaries(st.text(max_size=5) | st.just("count"), st.none() | st.integers() | st.text(max_size=3))
)
def test_no_value_of_another_key_makes_a_status_invalid(content: dict[str, object]):
    status = parse_status(json.dumps({**content, "writers": [content], "files": 3, "status": "idle"}))
    assert status is not None
    assert status.status == "idle"


def test_a_shown_status_has_only_the_fields_that_the_driver_sent():
    assert repr(DriverStatus("recording", count=0)) == "DriverStatus(status='recording', count=0)"


def test_states_can_be_compared_although_some_were_missed():
    assert DriverStatus("recording").has_reached("waiting_for_first_image")
    assert not DriverStatus("creating_file").has_reached("waiting_for_first_image")
    assert not DriverStatus("error").has_reached("started")


def test_queue_keeps_every_change_of_state_and_the_newest_count():
    queue = StatusQueue()
    for status in (
        DriverStatus("started"),
        *(DriverStatus("recording", count=i) for i in range(100)),
        DriverStatus("file_saved", count=100),
    ):
        queue.put(status)
    read = [queue.get() for _ in range(len(queue))]
    assert [(status.status, status.count) for status in read] == [
        ("started", None),
        ("recording", 99),
        ("file_saved", 100),
    ]


def test_unread_queue_stays_bounded():
    queue = StatusQueue()
    for run in range(HISTORY_LIMIT):
        for state in ("started", "recording", "file_saved", "idle"):
            queue.put(DriverStatus(state, run_id=str(run)))
    assert len(queue) == HISTORY_LIMIT
    assert queue.get().run_id == str(HISTORY_LIMIT * 3 // 4)
