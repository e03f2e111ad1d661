"""Clients written for the C++ driver connect, send, and expect the answer as first message."""

from __future__ import annotations

import json
import socket
import time
from typing import Any

import pytest
from support.processes.recording import MakeRig, Rig, Watcher, assert_saved, images_of
from websockets.sync.client import ClientConnection, connect

from stddaq.client import DriverClient
from stddaq.wire.driver_messages import RUN_STATES

STATUSES = {*RUN_STATES, "idle", "error", "rejected"}


def start_command(rig: Rig, **fields: Any) -> str:
    return json.dumps({"command": "start", "path": str(rig.directory), **fields})


def receive(connection: ClientConnection, timeout: float = 60) -> dict[str, Any]:
    frame = connection.recv(timeout=timeout)
    assert isinstance(frame, str)
    return json.loads(frame)


def ask(rig: Rig, frame: str) -> dict[str, Any]:
    """Connect, send, and return the first message."""
    with connect(rig.url) as connection:
        connection.send(frame)
        return receive(connection)


def receive_until(connection: ClientConnection, *states: str) -> list[dict[str, Any]]:
    messages = [receive(connection)]
    while messages[-1]["status"] not in states:
        messages.append(receive(connection))
    return messages


@pytest.mark.fault(
    fault="client of the C++ driver, which expects the answer as first message",
    state="idle, recording",
    promise="it is the reply: `rejected` with `driver is busy!`, or an error; the run is perfect",
)
def test_the_first_message_after_a_command_is_its_reply(make_rig: MakeRig):
    # The test may need longer from its handshake to its command than other drivers wait with their greeting.
    rig = make_rig(tolerant=True)
    images = images_of(range(20))
    rig.wait_for_subscription()
    with connect(rig.url) as starter:
        starter.send(start_command(rig, n_image=20))
        assert receive(starter)["status"] == "started"
        receive_until(starter, "waiting_for_first_image")
        rig.publish(images[:10])
        for _ in range(10):
            reply = ask(rig, start_command(rig, file_prefix="other"))
            assert (reply["status"], reply["reason"]) == ("rejected", "driver is busy!")
            assert "got state" in reply["detail"]
            assert ask(rig, '{"command": "start", "path": "relative"}')["status"] == "error"
            assert ask(rig, "{}")["error"] == "missing_field"
        rig.publish(images[10:])
        receive_until(starter, "file_saved")
    assert_saved(rig.account(), images)
    reply = ask(rig, start_command(rig))
    assert (reply["status"], reply["error"]) == ("error", "file_exists")
    assert ask(rig, '{"command": "stop"}')["status"] == "idle"


def test_the_greeting_is_sent_after_100_ms_or_at_once_on_request(rig: Rig):
    for path, earliest, latest in (("", 0.07, 5.0), ("/any/path", 0.07, 5.0), ("/now", 0.0, 0.07)):
        since_asked, since_connected = [], []
        for _ in range(5):
            asked = time.monotonic()
            with connect(rig.url + path) as connection:
                connected = time.monotonic()
                assert receive(connection)["status"] == "idle"
                since_asked.append(time.monotonic() - asked)
                since_connected.append(time.monotonic() - connected)
        # The driver counts from a time between the two. The fastest of several, because a busy machine delays
        # some, or this process after it has connected.
        assert min(since_asked) >= earliest, (path, since_asked)
        assert min(since_connected) < latest, (path, since_connected)


@pytest.mark.slow
def test_the_last_recording_or_stop_has_the_complete_count(rig: Rig):
    for run in range(20):
        rig.wait_for_subscription()
        with Watcher(rig.url) as watcher:
            rig.begin(n_image=3 if run % 2 else 100, file_prefix=f"r{run}_")
            rig.publish(images_of(range(3)))
            if not run % 2:
                rig.wait_for_count(1)
                rig.client.stop()
            watcher.wait_for("saving_file")
            statuses = [m for m in watcher.messages if m["status"] in ("recording", "stop")]
            watcher.wait_for("file_saved")
        account = rig.end()
        assert (statuses[-1]["status"], statuses[-1]["count"]) == (
            "recording" if run % 2 else "stop",
            account["count"],
        )
        rig.client.wait(["idle"], 60)


def test_every_message_is_a_text_frame_with_a_known_status_and_an_integer_count(rig: Rig):
    with connect(rig.url, compression=None) as connection:
        rig.wait_for_subscription()
        connection.send(start_command(rig, n_image=5, writer_id=0))
        messages = receive_until(connection, "waiting_for_first_image")
        assert connection.ping().wait(20)
        rig.publish(images_of(range(5)))
        messages += receive_until(connection, "idle")
    for message in messages:
        assert message["status"] in STATUSES
        if message["status"] in ("recording", "saving_file"):
            assert type(message["count"]) is int


@pytest.mark.fault(
    fault="client that reads nothing for 3 s at 500 progress messages a second",
    state="recording",
    promise="it stays connected; progress is merged, and it receives every state once, in order",
)
def test_a_client_that_reads_nothing_for_a_while_stays_connected(make_rig: MakeRig):
    rig = make_rig(number_of_writers=8)
    host, _, port = rig.url.removeprefix("ws://").partition(":")
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.connect((host, int(port)))
    # It reads only one message; the library stops reading when its queue is full.
    with connect(rig.url, sock=raw, max_queue=1, close_timeout=0.2) as slow:
        receive(slow)
        rig.begin(n_image=10**6)
        for first in range(0, 1500, 500):
            # A writer that stands still for a ring would lose images.
            rig.publish(images_of(range(first, first + 500)), pause_s=0.002)
            rig.wait_for_count(first + 500)
        account = rig.end(stop=True)
        assert account["n_good"] == 1500
        rig.client.wait(["idle"], 60)
        messages = receive_until(slow, "file_saved")
        states = [m["status"] for m in messages]
        entered = [state for i, state in enumerate(states) if i == 0 or states[i - 1] != state]
        assert [state for state in entered if state != "idle"] == [
            "started",
            "creating_file",
            "file_created",
            "waiting_for_first_image",
            "recording",
            "stop",
            "saving_file",
            "file_saved",
        ]
        assert len(messages) < 1500
    with DriverClient(rig.url) as driver:
        assert driver.latest.status == "idle"
