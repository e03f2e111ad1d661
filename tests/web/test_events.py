"""Events of services: kept, filtered, bounded, and sent to browsers."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq
from support.processes.deployment import Deployment, free_port, wait_until
from support.processes.web import RestService, json_message
from websockets.sync.client import connect

from stddaq.cli.supervisor.events import EventPublisher
from stddaq.dataplane import endpoints
from stddaq.web.live.events import KEPT, MAX_WAITING, Events, Numbers
from stddaq.wire.events import Event, event_of, parse_event


def event(seq: int, level: str = "info", epoch: int = 1) -> Event:
    return event_of(f"[t][s][{level}] line {seq}", epoch, seq, "std_det_writer", "0")


def test_events_are_kept_up_to_a_limit_and_filtered_by_level() -> None:
    events = Events()
    for seq in range(KEPT + 5):
        events.note("d", event(seq, "error" if seq % 100 == 0 else "info"))
    found = events.since(0, "debug", KEPT)
    assert (len(found), found[0].seq, found[-1].seq) == (KEPT, 6, KEPT + 5)
    assert [kept.event.level for kept in events.since(0, "warning", 3)] == ["error"] * 3
    assert [kept.seq for kept in events.since(KEPT + 3, "info", 10)] == [KEPT + 4, KEPT + 5]


def test_browser_that_does_not_read_loses_the_oldest_events_and_is_told_how_many() -> None:
    events = Events()
    with events.watching(0) as watcher:
        for seq in range(MAX_WAITING + 3):
            events.note("d", event(seq))
        taken = watcher.take()
        assert (len(taken), taken[0].seq, watcher.n_dropped) == (MAX_WAITING, 4, 3)
        assert watcher.take() == []
    with events.watching(MAX_WAITING) as watcher:
        assert [kept.seq for kept in watcher.take()] == [MAX_WAITING + 1, MAX_WAITING + 2, MAX_WAITING + 3]


def test_numbers_find_dropped_and_repeated_events() -> None:
    numbers = Numbers()
    assert numbers.n_dropped_before(event(400)) == 0
    assert numbers.n_dropped_before(event(401)) == 0
    assert numbers.n_dropped_before(event(405)) == 3
    assert numbers.n_dropped_before(event(405)) is None
    assert numbers.n_dropped_before(event(3)) is None
    assert numbers.n_dropped_before(event(1, epoch=2)) == 0


def test_subscriber_receives_the_last_lines_before_new_ones(deployment: Deployment) -> None:
    """Services print all the time, also while `stddaq-rest` connects."""

    async def first_numbers() -> list[int]:
        publisher = EventPublisher(deployment.detector_name)
        publisher.publish("before", "up")
        serving = asyncio.create_task(publisher.serve())
        with zmq.Context() as context, context.socket(zmq.SUB) as subscriber:
            subscriber.subscribe(b"")
            subscriber.connect(endpoints.events(deployment.detector_name))
            async with asyncio.timeout(30):
                while not subscriber.poll(0):
                    publisher.publish("meanwhile", "up")
                    await asyncio.sleep(0.001)
            received = [parse_event(subscriber.recv()).seq]
            while subscriber.poll(0):
                received.append(parse_event(subscriber.recv()).seq)
        serving.cancel()
        publisher.close()
        return received

    numbers = asyncio.run(first_numbers())
    assert numbers == list(range(1, len(numbers) + 1))


def test_browser_of_an_earlier_start_of_the_service_receives_all_events() -> None:
    events = Events()
    events.note("d", event(1))
    with events.watching(800) as watcher:
        assert [kept.seq for kept in watcher.take()] == [1]


def texts(rest: RestService, **query: Any) -> list[str]:
    return [one["text"] for one in rest.get("/api/events", **query).json()["events"]]


def test_lines_of_up_reach_browsers_also_those_from_before(deployment: Deployment, tmp_path: Path) -> None:
    """`stddaq up` prints before its `stddaq-rest` has started."""
    path = tmp_path / "files"
    up = deployment.start_up("--port", free_port())
    rest = RestService.start(deployment, path)
    wait_until(lambda: any("all services ready" in text for text in texts(rest)), 30, "the backlog")
    found = rest.get("/api/events", level="info").json()
    assert found["dropped"] == 0
    writer = next(one for one in found["events"] if (one["service"], one["id"]) == ("std_det_writer", "1"))
    assert "ready" in writer["text"]
    assert writer["level"] == "info"
    assert writer["detector"] == deployment.detector_name
    assert [one["seq"] for one in found["events"]] == sorted({one["seq"] for one in found["events"]})

    def writer_pid() -> int | None:
        rows = rest.get("/api/health").json()["services"]
        return next((row["pid"] for row in rows if row["service"] == "std_det_writer"), None)

    os.kill(wait_until(writer_pid, what="the page of a writer"), signal.SIGKILL)
    # The level by which the page filters.
    wait_until(lambda: any("killed by SIGKILL" in text for text in texts(rest, level="error")), 30)
    with connect(rest.url.replace("http", "ws") + "/api/events/ws", proxy=None) as socket:
        first = json_message(socket)["events"]
        assert first
        up.end()
        received: list[str] = []
        while "all services have ended" not in received:
            received += [one["text"] for one in json_message(socket)["events"]]
    assert deployment.sockets() == []


def test_events_need_the_right_to_view(start_rest: Callable[..., RestService], token_file: Path) -> None:
    rest = start_rest("--token-file", token_file, "--anonymous-view")
    assert rest.get("/api/events").status_code == 401
    assert rest.get("/api/runs").status_code == 401
    assert rest.get("/api/health").json()["disks"] == []


def test_name_of_the_endpoint_is_that_of_the_detector() -> None:
    assert endpoints.events("det").endswith("/det-events")
