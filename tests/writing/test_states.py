"""A run as clients see it: every state in order, stop in each of them, one run at a time."""

from __future__ import annotations

import json
import signal
import threading
import time
from typing import Any

import pytest
from support.processes.machine import assert_within
from support.processes.recording import (
    RUN_STATES,
    MakeRig,
    Publishing,
    Rig,
    Watcher,
    assert_raw_files_hold,
    assert_saved,
    images_of,
)
from websockets.sync.client import connect

from stddaq.client import DriverBusyError, DriverClient, RunFailedError

RECORDED = ["idle", *RUN_STATES, "idle"]
STOPPED = [*RECORDED[:6], "stop", *RECORDED[6:]]


def test_every_watcher_sees_every_state_once_in_order(rig: Rig):
    watchers = [rig.enter(Watcher(rig.url)) for _ in range(3)]
    images = images_of(range(10))
    rig.record(images)
    with Watcher(rig.url) as late:
        assert late.states == ["idle"]
    for watcher in watchers:
        watcher.wait_for("idle", times=2)
        assert watcher.states == RECORDED
        for message in watcher.messages:
            if message["status"] in ("recording", "saving_file"):
                assert 0 <= message["count"] <= 10
        assert watcher.wait_for("file_saved")["count"] == 10
        counts = [m["count"] for m in watcher.messages if m["status"] == "recording"]
        assert counts == sorted(counts)


def test_late_client_can_ask_for_the_last_result(rig: Rig):
    assert rig.client.last_result() is None
    images = images_of(range(4, 9))
    account = rig.record(images)
    with DriverClient(rig.url) as late:
        assert late.latest.status == "idle"
        assert late.last_result() == account


def test_stop_while_recording_saves_what_was_published_before(rig: Rig):
    watcher = rig.enter(Watcher(rig.url))
    images = images_of(range(25))
    rig.begin()
    rig.publish(images)
    rig.wait_for_count(25)
    account = rig.end(stop=True)
    rig.publish(images_of(range(25, 30)))
    assert_saved(account, images)
    watcher.wait_for("idle", times=2)
    assert watcher.states == STOPPED


def test_images_published_before_a_stop_are_recorded_even_if_no_client_waits_for_them(rig: Rig):
    images = images_of(range(500))
    rig.begin()
    rig.publish(images[:1])
    rig.wait_for_count(1)
    rig.publish(images[1:])
    account = rig.end(stop=True)
    # The last images may not have arrived yet; those that did are complete and in order.
    assert account["n_dropped"] == 0
    assert_saved(account, images[: account["count"]])


def test_stop_while_waiting_for_the_first_image_ends_the_run_without_images(rig: Rig):
    watcher = rig.enter(Watcher(rig.url))
    rig.begin(n_image=10)
    assert_saved(rig.end(stop=True), [])
    watcher.wait_for("idle", times=2)
    assert watcher.states == ["idle", *RECORDED[1:5], "stop", *RECORDED[6:]]


def test_stop_while_files_are_created_ends_the_run(make_rig: MakeRig):
    rig = make_rig(tolerant=True, number_of_writers=1)
    rig.driver.wait_for_line("writer 0 connected")
    rig.writers[0].send(signal.SIGSTOP)
    watcher = rig.enter(Watcher(rig.url))
    rig.client.start(rig.directory, n_image=10)
    watcher.wait_for("creating_file")
    rig.client.stop()
    rig.writers[0].send(signal.SIGCONT)
    rig.client.wait_until_saved(60)
    assert_saved(rig.account(), [])
    watcher.wait_for("idle", times=2)
    assert "waiting_for_first_image" not in watcher.states
    assert watcher.states[-4:] == ["stop", "saving_file", "file_saved", "idle"]


def test_stop_while_files_are_saved_changes_nothing(make_rig: MakeRig):
    rig = make_rig(tolerant=True, number_of_writers=1)
    images = images_of(range(3))
    rig.begin(n_image=3)
    rig.publish(images[:2])
    rig.wait_for_count(2)
    rig.writers[0].send(signal.SIGSTOP)
    rig.publish(images[2:])
    rig.client.wait_for(lambda status: status.n_received == 3, 60)
    rig.client.stop()
    rig.writers[0].send(signal.SIGCONT)
    assert_saved(rig.end(), images)


def test_stop_when_idle_does_nothing_and_the_next_run_is_not_stopped_by_it(rig: Rig):
    assert rig.client.stop().status == "idle"
    assert rig.client.last_result() is None
    images = images_of(range(5))
    assert_saved(rig.record(images), images)


def test_of_two_starts_at_once_exactly_one_is_admitted(rig: Rig):
    for attempt in range(4):
        barrier = threading.Barrier(3)
        replies: list[dict[str, Any]] = []

        def start(prefix: str, barrier: Any = barrier, replies: Any = replies) -> None:
            command = {"command": "start", "path": str(rig.directory), "file_prefix": prefix}
            with connect(rig.url) as connection:
                barrier.wait(20)
                connection.send(json.dumps(command))
                replies.append(reply_to(connection, "start"))

        threads = [threading.Thread(target=start, args=(f"n{attempt}{i}_",)) for i in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert sorted(reply["status"] for reply in replies) == ["rejected"] * 2 + ["started"], replies
        rejected = next(reply for reply in replies if reply["status"] == "rejected")
        assert rejected["error"] == "busy"
        assert rejected["reason"]
        rig.client.stop()
        rig.client.wait(["idle"], 60)
        assert len(list(rig.directory.glob("*Master.h5"))) == attempt + 1


def reply_to(connection: Any, command: str) -> dict[str, Any]:
    """Return the direct reply; skip broadcasts."""
    while True:
        message = json.loads(connection.recv(timeout=60))
        if message.get("command") == command:
            return message


def test_start_while_recording_is_rejected_and_does_not_disturb_the_run(rig: Rig):
    images = images_of(range(20))
    rig.begin(n_image=20)
    rig.publish(images[:10])
    rig.wait_for_count(10)
    with DriverClient(rig.url) as other, pytest.raises(DriverBusyError):
        other.start(rig.directory, file_prefix="other")
    rig.publish(images[10:])
    assert_saved(rig.end(), images)
    assert not list(rig.directory.glob("other*"))


@pytest.mark.fault(
    fault="writer absent",
    state="creating_file",
    promise="error within 2 s that names it, nothing is created",
)
def test_a_writer_that_is_absent_at_the_start_is_an_error_that_names_it(make_rig: MakeRig):
    rig = make_rig(writers=False)
    rig.deployment.start("std_det_writer", 0)
    begin = time.monotonic()
    rig.client.start(rig.directory, n_image=4)
    with pytest.raises(RunFailedError, match="writer 1"):
        rig.client.wait_until_saved(60)
    assert_within(time.monotonic() - begin, 2.0)
    assert list(rig.directory.iterdir()) == []
    account = rig.account()
    assert (account["outcome"], account["count"]) == ("error", 0)
    rig.deployment.start("std_det_writer", 1)
    images = images_of(range(4))
    assert_saved(rig.record(images), images)


@pytest.mark.slow
def test_a_metadata_writer_that_is_absent_at_the_start_is_an_error_that_names_it(make_rig: MakeRig):
    rig = make_rig(driver=["-m"], number_of_writers=1)
    rig.client.start(rig.directory)
    with pytest.raises(RunFailedError, match="the metadata writer"):
        rig.client.wait_until_saved(60)
    assert list(rig.directory.iterdir()) == []


@pytest.mark.fault(
    fault="source never starts; start with first_image_timeout",
    state="waiting_for_first_image",
    promise="error after the timeout",
)
def test_no_image_within_first_image_timeout_is_an_error(rig: Rig):
    rig.begin(first_image_timeout=0.2)
    with pytest.raises(RunFailedError, match=r"no image arrived within 0\.2 s"):
        rig.client.wait_until_saved(60)
    images = images_of(range(4))
    assert_saved(rig.record(images, file_prefix="next"), images)


def test_nothing_published_before_the_start_is_recorded(rig: Rig):
    rig.wait_for_subscription()
    rig.publish(images_of(range(300)))
    images = images_of(range(300, 320))
    assert_saved(rig.record(images, file_prefix="a"), images)
    # This includes images between runs, although the driver receives them.
    rig.publish(images_of(range(320, 400)))
    images = images_of(range(400, 410))
    assert_saved(rig.record(images, file_prefix="b"), images)


def test_only_newer_images_of_a_continuous_source_are_recorded(rig: Rig):
    with Publishing(rig, pause_s=0.0005) as source:
        for run in range(3):
            rig.client.wait(["idle"], 60)
            before = source.next_id - 1
            rig.client.start(rig.directory, n_image=50, file_prefix=f"run{run}_")
            rig.client.wait_until_ready(60)
            with source.spared():
                rig.client.wait_until_saved(60)
            account = rig.account()
            assert account["first_id"] > before
            assert account["n_dropped"] == account["n_skipped"] == 0
            first = account["first_id"]
            assert_saved(account, images_of(range(first, first + 50)))


def test_a_source_that_connects_after_the_start_is_recorded_from_its_first_image(rig: Rig):
    rig.client.start(rig.directory, n_image=10)
    rig.client.wait_until_ready(60)
    rig.wait_for_subscription()
    images = images_of(range(10))
    rig.publish(images)
    assert_saved(rig.end(), images)


def test_a_run_outlives_the_client_that_started_it(rig: Rig):
    images = images_of(range(20))
    rig.wait_for_subscription()
    with DriverClient(rig.url) as starter:
        starter.start(rig.directory)
        starter.wait_until_ready(60)
    rig.publish(images)
    rig.wait_for_count(20)
    with DriverClient(rig.url) as other:
        other.stop()
        other.wait_until_saved(60)
    assert_saved(rig.account(), images)


def test_files_are_readable_when_the_driver_reports_saved(rig: Rig):
    """No file is closed or renamed after `file_saved`."""
    with Watcher(rig.url) as watcher:
        images = images_of(range(6))
        rig.begin(n_image=6)
        rig.publish(images)
        files = watcher.wait_for("file_saved")["files"]
        assert_raw_files_hold(files["raw"], images)
    assert sorted(path.name for path in rig.directory.iterdir()) == [
        "file0.h5",
        "file1.h5",
        "fileMaster.h5",
    ]
