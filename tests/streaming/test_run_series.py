"""The series of runs, without I/O: which rows are sent, and what ends a series."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from stddaq.client.status import DriverStatus
from stddaq.streaming.run_series import LATE_IMAGES_TIMEOUT_S, MAX_WAITING_BYTES, RunSeries
from stddaq.wire.stins import SeriesMaker


class Bench:
    """A series with a driver, a source and a clock that the test sets."""

    def __init__(self, image_bytes: int = 12) -> None:
        self.now = 0.0
        self.series = RunSeries(SeriesMaker((2, 3), np.dtype("<u2")), image_bytes, lambda: self.now)
        self.series.has_consumer = self.series.is_numbered = True
        self.n_dropped = 0

    def status(self, status: str, n_received: int = 0, **raw: Any) -> None:
        """Receive a status of the run `a`."""
        raw = {"start_id": 0, "first_id": None, "n_dropped": 0} | raw
        run_id = raw.pop("run_id", "a")
        reason = raw.pop("reason", None)
        files = {"master": "/data/aMaster.h5"}
        self.series.update(
            DriverStatus(
                status, reason=reason, run_id=run_id, n_image=9, n_received=n_received, files=files, raw=raw
            )
        )

    def images(self, *ids: int) -> None:
        """Receive images with their pixels."""
        for image_id in ids:
            if row := self.series.expect(image_id, self.n_dropped):
                row.settle(memoryview(bytes([image_id] * 12)), None)

    def sent(self) -> list[dict[str, Any]]:
        """Return the messages that are due."""
        messages = []
        while message := self.series.next_message():
            parts, image = message
            messages.append(json.loads(bytes(parts[0])))
            if image is not None:
                assert bytes(image) == bytes([messages[-1]["image_id"]] * 12)
        return messages


def rows(messages: Sequence[dict[str, Any]]) -> list[tuple[int, int | None, str | None]]:
    """Return number, image id and status of the images among `messages`."""
    return [(m["frame"], m["image_id"], m.get("status")) for m in messages if m["htype"] == "image"]


def test_rows_begin_with_the_first_image_that_the_driver_has_recorded() -> None:
    bench = Bench()
    bench.status("waiting_for_first_image")
    bench.images(1, 2, 3, 4)
    assert bench.sent() == []
    bench.status("recording", 1, first_id=3)
    messages = bench.sent()
    assert messages[0]["htype"] == "header"
    assert messages[0]["filename"] == "/data/aMaster.h5"
    # The driver has not said yet that it has received image 4.
    assert rows(messages) == [(0, 3, None)]
    bench.status("recording", 2, first_id=3)
    assert rows(bench.sent()) == [(1, 4, None)]


def test_first_image_may_come_after_the_status_that_names_it() -> None:
    bench = Bench()
    bench.status("recording", 1, first_id=3)
    assert bench.sent() == []
    bench.images(3)
    bench.status("recording", 1, first_id=3)
    assert rows(bench.sent()) == [(0, 3, None)]


def test_run_whose_first_image_does_not_come_here_is_not_sent() -> None:
    bench = Bench()
    bench.status("recording", 1, first_id=3)
    bench.images(5, 6)
    bench.now = LATE_IMAGES_TIMEOUT_S + 1
    bench.status("recording", 4, first_id=3)
    bench.status("file_saved", 4, first_id=3)
    assert bench.sent() == []


def test_earlier_image_of_the_same_id_is_no_row() -> None:
    bench = Bench()
    bench.status("creating_file")
    bench.images(3, 4, 1, 2, 3, 4)
    bench.status("recording", 2, first_id=3)
    assert rows(bench.sent()) == [(0, 3, None), (1, 4, None)]
    bench.images(1)
    bench.status("recording", 3, first_id=3)
    assert rows(bench.sent()) == [(2, 1, None)]


def test_images_below_the_start_id_are_no_rows() -> None:
    bench = Bench()
    bench.status("creating_file", start_id=3)
    bench.images(1, 2, 3)
    bench.status("recording", 1, first_id=3, start_id=3)
    bench.images(1, 4)
    bench.status("recording", 2, first_id=3, start_id=3)
    assert rows(bench.sent()) == [(0, 3, None), (1, 4, None)]


def test_lost_announcements_are_rows_and_the_others_keep_their_numbers() -> None:
    bench = Bench()
    bench.status("creating_file")
    bench.images(3)
    bench.status("recording", 1, first_id=3)
    bench.n_dropped = 2
    bench.images(6)
    bench.status("recording", 4, first_id=3)
    assert rows(bench.sent()) == [(0, 3, None), (1, None, "dropped"), (2, None, "dropped"), (3, 6, None)]


def test_announcements_that_are_lost_before_the_first_status_are_rows() -> None:
    bench = Bench()
    bench.status("creating_file")
    bench.images(3)
    bench.n_dropped = 1
    bench.images(5)
    bench.status("recording", 3, first_id=3)
    assert rows(bench.sent()) == [(0, 3, None), (1, None, "dropped"), (2, 5, None)]


def test_missing_images_of_a_source_without_numbers_end_the_series_with_an_error() -> None:
    bench = Bench()
    bench.series.is_numbered = False
    bench.status("creating_file")
    bench.images(1, 3)
    bench.status("file_saved", 3, first_id=1)
    assert rows(bench.sent()) == [(0, 1, None), (1, 3, None)]
    bench.now = LATE_IMAGES_TIMEOUT_S + 1
    assert bench.sent() == []
    assert "1 images did not arrive" in bench.sent()[0]["error"]


def test_row_without_verdict_delays_later_ones() -> None:
    bench = Bench()
    bench.status("creating_file")
    waiting = bench.series.expect(1, 0)
    assert waiting is not None
    bench.images(2)
    bench.status("recording", 2, first_id=1)
    assert rows(bench.sent()) == []
    waiting.settle(None, "overwritten")
    assert rows(bench.sent()) == [(0, 1, "overwritten"), (1, 2, None)]


def test_images_after_the_last_row_are_not_sent_and_the_end_has_the_count() -> None:
    bench = Bench()
    bench.status("creating_file")
    bench.images(1, 2, 3, 4)
    bench.status("recording", 1, first_id=1)
    bench.status("file_saved", 3, first_id=1)
    messages = bench.sent()
    assert rows(messages) == [(0, 1, None), (1, 2, None), (2, 3, None)]
    assert messages[-1] == {"htype": "series_end", "msg_number": 4, "count": 3}
    bench.images(5)
    bench.status("idle", run_id=None)
    assert bench.sent() == []


def test_last_images_are_waited_for_and_then_sent_as_lost() -> None:
    bench = Bench()
    bench.status("creating_file")
    bench.images(1)
    bench.status("file_saved", 3, first_id=1)
    assert rows(bench.sent()) == [(0, 1, None)]
    bench.status("idle", run_id=None)
    bench.images(2)
    assert rows(bench.sent()) == [(1, 2, None)]
    bench.now = LATE_IMAGES_TIMEOUT_S + 1
    messages = bench.sent()
    assert rows(messages) == [(2, None, "dropped")]
    assert messages[-1]["count"] == 3


def test_run_without_images_has_a_header_and_an_end() -> None:
    bench = Bench()
    bench.status("waiting_for_first_image")
    bench.images(1)
    bench.status("error", reason="no image within 1 s")
    header, end = bench.sent()
    assert header["run_id"] == "a"
    assert (end["count"], end["error"]) == (0, "no image within 1 s")


def test_more_waiting_images_than_the_limit_end_the_series_with_an_error() -> None:
    bench = Bench(image_bytes=MAX_WAITING_BYTES // 3)
    bench.status("creating_file")
    bench.images(1, 2, 3, 4, 5)  # Before the first image of the run, older ones make room.
    bench.status("recording", 3, first_id=3)
    bench.images(6)
    messages = bench.sent()
    assert [message["htype"] for message in messages] == ["header", "series_end"]
    assert "images wait for the consumer" in messages[1]["error"]
    bench.images(7)
    bench.status("file_saved", 5, first_id=3)
    assert bench.sent() == []
    # Those that waited, and a later one.
    assert bench.series.n_dropped == 5


def test_announcements_that_the_driver_has_lost_end_the_series_with_an_error() -> None:
    bench = Bench()
    bench.status("creating_file")
    bench.images(1, 2)
    bench.status("recording", 1, first_id=1, n_dropped=1)
    assert "the driver has lost" in bench.sent()[-1]["error"]


def test_lost_driver_ends_the_series_with_an_error() -> None:
    bench = Bench()
    bench.status("creating_file")
    bench.images(1)
    bench.status("recording", 1, first_id=1)
    assert len(bench.sent()) == 2
    bench.series.update(None)
    assert bench.sent()[0]["error"] == "the driver was restarted or does not answer"


def test_consumer_that_has_left_receives_no_rest_of_the_run() -> None:
    bench = Bench()
    bench.status("creating_file")
    bench.images(1, 2)
    bench.status("recording", 2, first_id=1)
    bench.series.disconnect(0)
    bench.images(3)
    bench.status("recording", 3, first_id=1)
    assert bench.sent() == []


def test_next_run_ends_one_that_the_consumer_has_not_received() -> None:
    bench = Bench()
    bench.status("creating_file")
    bench.images(1)
    bench.status("file_saved", 2, first_id=1)
    assert len(bench.sent()) == 2
    bench.status("started", run_id="b")
    end = bench.sent()
    assert [(m["htype"], m["count"]) for m in end] == [("series_end", 1)]
    assert "the next run began" in end[0]["error"]
