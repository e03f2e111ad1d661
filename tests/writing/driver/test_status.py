"""The clients that receive the status, and its frequency, with a fake clock."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from stddaq.wire.driver_messages import STATUS_PERIOD_S
from stddaq.writing.driver.status import GREETING_DELAY_S, PROGRESS_SPACING_S, Client, Scheduler, Watchers


class FakeClient(Client):
    def __init__(self) -> None:
        self.messages: list[Any] = []

    def send(self, message: str, state: object = None) -> None:
        content = json.loads(message)
        self.messages.append({"n": content["n"]} if "n" in content else content)


class FakeScheduler(Scheduler):
    def __init__(self) -> None:
        self.now = 50.0
        self.calls: list[tuple[float, Callable[[], object]]] = []

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: Callable[[], object]) -> None:
        self.calls.append((self.now + delay, callback))

    def advance(self, seconds: float) -> None:
        self.now += seconds
        due = [callback for at, callback in self.calls if at <= self.now]
        self.calls = [call for call in self.calls if call[0] > self.now]
        for callback in due:
            callback()


class Setup:
    def __init__(self) -> None:
        self.scheduler = FakeScheduler()
        self.n_composed = 0
        self.watchers = Watchers(self.compose, self.scheduler)

    def compose(self) -> dict[str, Any]:
        self.n_composed += 1
        return {"n": self.n_composed, "status": "idle", "run_id": None}

    def client(self) -> FakeClient:
        client = FakeClient()
        self.watchers.add(client, at_once=True)
        client.messages.clear()
        return client


@pytest.fixture
def setup() -> Setup:
    return Setup()


def test_a_new_client_receives_the_status_at_once_on_request(setup: Setup):
    client = FakeClient()
    setup.watchers.add(client, at_once=True)
    assert client.messages == [{"n": 1}]


def test_a_new_client_receives_nothing_before_its_greeting(setup: Setup):
    client = FakeClient()
    setup.watchers.add(client, at_once=False)
    setup.watchers.notify()
    setup.scheduler.advance(GREETING_DELAY_S - 0.001)
    assert client.messages == []
    setup.scheduler.advance(0.002)
    assert len(client.messages) == 1
    setup.watchers.notify()
    assert len(client.messages) == 2


def test_the_reply_to_a_new_client_is_its_first_message_however_long_it_takes(setup: Setup):
    client = FakeClient()
    setup.watchers.add(client, at_once=False)
    with setup.watchers.replying_to(client):
        setup.scheduler.advance(10 * GREETING_DELAY_S)
        setup.watchers.notify()
        client.send('{"reply": 1}')
    assert client.messages == [{"reply": 1}]
    setup.watchers.notify()
    assert len(client.messages) == 2


def test_a_client_that_disconnects_before_its_greeting_receives_none(setup: Setup):
    client = FakeClient()
    setup.watchers.add(client, at_once=False)
    assert len(setup.watchers) == 1
    setup.watchers.remove(client)
    setup.scheduler.advance(1.0)
    assert (client.messages, len(setup.watchers)) == ([], 0)


def test_every_client_receives_the_same_message_until_it_disconnects(setup: Setup):
    first, second = setup.client(), setup.client()
    setup.watchers.notify()
    assert first.messages == second.messages == [{"n": 3}]
    setup.watchers.remove(second)
    setup.watchers.notify()
    assert (len(first.messages), len(second.messages), len(setup.watchers)) == (2, 1, 1)


def test_a_client_that_receives_a_reply_is_not_notified_as_well(setup: Setup):
    starter, other = setup.client(), setup.client()
    setup.watchers.notify(except_for=starter)
    assert (len(starter.messages), len(other.messages)) == (0, 1)


def test_no_message_is_composed_without_clients(setup: Setup):
    setup.watchers.notify()
    assert setup.n_composed == 0


def test_status_is_sent_periodically_while_there_are_clients(setup: Setup):
    assert setup.scheduler.calls == []
    client = setup.client()
    setup.scheduler.advance(STATUS_PERIOD_S)
    setup.scheduler.advance(STATUS_PERIOD_S)
    assert len(client.messages) == 2
    setup.watchers.remove(client)
    setup.scheduler.advance(STATUS_PERIOD_S)
    # Without clients the driver does not wake up.
    assert (len(client.messages), setup.scheduler.calls) == (2, [])
    replied_to = FakeClient()
    setup.watchers.add(replied_to, at_once=False)
    with setup.watchers.replying_to(replied_to):
        pass
    setup.scheduler.advance(STATUS_PERIOD_S)
    assert len(replied_to.messages) == 1


def test_periodic_status_is_not_sent_soon_after_another_one(setup: Setup):
    client = setup.client()
    setup.scheduler.advance(0.8 * STATUS_PERIOD_S)
    setup.watchers.notify()
    setup.scheduler.advance(0.25 * STATUS_PERIOD_S)
    assert len(client.messages) == 1
    setup.scheduler.advance(0.8 * STATUS_PERIOD_S)
    assert len(client.messages) == 2


def test_progress_after_a_pause_is_reported_at_once(setup: Setup):
    client = setup.client()
    setup.watchers.notify_progress()
    assert len(client.messages) == 1
    setup.scheduler.advance(2 * PROGRESS_SPACING_S)
    setup.watchers.notify_progress()
    assert len(client.messages) == 2


def test_frequent_progress_is_reported_once_per_spacing_and_never_forgotten(setup: Setup):
    client = setup.client()
    for _ in range(100):
        setup.watchers.notify_progress()
        setup.scheduler.advance(PROGRESS_SPACING_S / 10)
    assert 10 <= len(client.messages) <= 11
    setup.watchers.notify_progress()
    reported = len(client.messages)
    setup.scheduler.advance(PROGRESS_SPACING_S)
    assert len(client.messages) == reported + 1
    setup.scheduler.advance(5 * PROGRESS_SPACING_S)
    assert len(client.messages) == reported + 1
