"""The client's protocol, fed with a driver's messages: no sockets, no clock."""

from __future__ import annotations

import json
from typing import Any

import pytest

from stddaq.client import CommandRefusedError, ConnectionLostError, DriverBusyError, UnsupportedError
from stddaq.client.driver_protocol import (
    BasicDriver,
    DriverHistory,
    DriverProtocol,
    ReplyingDriver,
    protocol_for,
    refusal,
)
from stddaq.client.status import DriverStatus, parse_status


def message(status: str, **fields: Any) -> DriverStatus:
    """Return a status as parsed from a frame."""
    parsed = parse_status(json.dumps({"status": status, **fields}))
    assert parsed is not None
    return parsed


def connected(status: str = "idle", **fields: Any) -> DriverProtocol:
    """Return a protocol that has received its first status."""
    first = message(status, **fields)
    protocol = protocol_for(first, DriverHistory())
    protocol.receive(first)
    return protocol


def replying(status: str = "idle", run_id: str | None = None) -> DriverProtocol:
    return connected(status, run_id=run_id)


def test_the_first_status_shows_the_kind_of_driver() -> None:
    assert isinstance(replying(), ReplyingDriver)
    assert isinstance(connected(), BasicDriver)


class TestReplyingDriver:
    def test_reply_answers_its_command_and_broadcasts_do_not(self) -> None:
        driver = replying()
        stop, status = driver.stop(), driver.status()[0]
        driver.receive(message("idle", run_id=None))
        assert not stop.is_over
        driver.receive(message("idle", run_id=None, command="status"))
        assert (stop.is_over, status.is_over) == (False, True)

    def test_late_reply_of_an_abandoned_command_does_not_answer_the_next(self) -> None:
        driver = replying()
        abandoned = driver.start()
        driver.history.forget(abandoned)
        second = driver.start()
        driver.receive(message("started", run_id="a", command="start"))
        assert not second.is_over
        driver.receive(message("rejected", run_id="a", command="start", error="busy"))
        assert second.status is not None
        assert isinstance(refusal(second.status), DriverBusyError)

    def test_refusal_without_a_command_answers_the_only_one_that_waits(self) -> None:
        driver = replying()
        answer = driver.start()
        driver.receive(message("error", error="invalid_json", reason="expected JSON"))
        assert answer.status is not None
        error = refusal(answer.status)
        assert isinstance(error, CommandRefusedError)
        assert error.error_type == "invalid_json"

    def test_refusal_does_not_change_the_latest_status(self) -> None:
        driver = replying("recording", "a")
        driver.start()
        driver.receive(message("rejected", command="start", error="busy"))
        assert driver.history.latest == message("recording", run_id="a")
        assert driver.history.run is None

    def test_run_is_followed_from_its_reply_to_its_end(self) -> None:
        driver = replying()
        driver.start()
        driver.receive(message("started", run_id="b", command="start"))
        run = driver.history.current_run()
        assert run is not None
        assert (run.run_id, run.ready, run.ended) == ("b", None, None)
        driver.receive(message("waiting_for_first_image", run_id="b"))
        driver.receive(message("file_saved", run_id="b"))
        driver.receive(message("started", run_id="c"))
        assert run.ready == message("waiting_for_first_image", run_id="b")
        assert run.ended == message("file_saved", run_id="b")

    def test_lost_connection_ends_commands_but_not_waits_for_a_status(self) -> None:
        driver = replying()
        answer, wait = driver.stop(), driver.history.expect(lambda status: status.is_busy)
        driver.connection_lost(ConnectionLostError("lost"))
        assert isinstance(answer.error, ConnectionLostError)
        assert not wait.is_over


class TestBasicDriver:
    def test_start_is_answered_by_a_state_of_a_run(self) -> None:
        driver = connected()
        answer = driver.start()
        driver.receive(message("idle"))
        assert not answer.is_over
        driver.receive(message("recording", count=1))
        assert answer.status == message("recording", count=1)
        assert driver.history.run is not None

    def test_start_during_a_run_is_not_answered_by_that_run(self) -> None:
        driver = connected("recording")
        answer = driver.start()
        driver.receive(message("recording", count=1))
        assert not answer.is_over
        driver.receive(message("rejected", reason="driver is busy"))
        assert answer.status is not None
        assert isinstance(refusal(answer.status), DriverBusyError)
        assert driver.history.latest == message("recording", count=1)

    @pytest.mark.parametrize(
        ("state", "has_to_settle"), [("file_saved", True), ("error", True), ("idle", False)]
    )
    def test_start_waits_until_the_last_run_cannot_be_mistaken_for_its_answer(
        self, state: str, has_to_settle: bool
    ) -> None:
        driver = connected(state)
        settled = driver.settled()
        assert (settled is not None) == has_to_settle
        if settled is not None:
            driver.receive(message("idle"))
            assert settled.is_over

    def test_any_status_answers_stop(self) -> None:
        driver = connected("recording")
        answer = driver.stop()
        driver.receive(message("recording", count=7))
        assert answer.status == message("recording", count=7)

    def test_run_whose_end_was_not_sent_has_ended_when_the_driver_is_idle(self) -> None:
        driver = connected("started")
        run = driver.history.current_run()
        assert run is not None
        assert not run.is_own
        driver.receive(message("idle"))
        assert run.ready == run.ended == message("idle")

    def test_commands_of_the_other_driver_are_unsupported(self) -> None:
        with pytest.raises(UnsupportedError, match="repair"):
            connected().request("repair")


def test_error_in_a_condition_ends_only_its_own_wait() -> None:
    driver = connected()
    broken = driver.history.expect(lambda _: 1 // 0 == 1)
    sound = driver.history.expect(lambda status: status.status == "started")
    driver.receive(message("started"))
    assert isinstance(broken.error, ZeroDivisionError)
    assert sound.status == message("started")


def test_abandoned_wait_is_not_notified() -> None:
    driver = connected()
    notified: list[bool] = []
    wait = driver.history.expect(lambda _: True)
    wait.notify = lambda: notified.append(True)
    driver.history.forget(wait)
    driver.receive(message("started"))
    assert notified == []


def test_feed_of_a_run_ends_with_the_end_of_the_run() -> None:
    driver = replying("recording", "a")
    feed = driver.history.feed(driver.history.current_run())
    for status in ("recording", "saving_file", "file_saved", "idle"):
        driver.receive(message(status, run_id="a"))
    states = []
    while not feed.is_over:
        states.append(feed.get().status)
    assert states == ["recording", "saving_file", "file_saved"]


def test_lost_connection_ends_feeds_after_their_queued_statuses() -> None:
    driver = connected("recording")
    feed = driver.history.feed()
    driver.history.fail(ConnectionLostError("lost"))
    assert feed.get() == message("recording")
    assert len(feed) == 0
    assert isinstance(feed.error, ConnectionLostError)
