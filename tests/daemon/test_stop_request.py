"""`StopRequest`: a flag and a descriptor that signals set."""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Iterator

import pytest

from stddaq.daemon.main import STOP_SIGNALS, StopRequest


@pytest.fixture
def stop() -> Iterator[StopRequest]:
    handlers = {number: signal.getsignal(number) for number in (*STOP_SIGNALS, signal.SIGUSR2)}
    request = StopRequest()
    yield request
    request.close()
    for number, handler in handlers.items():
        signal.signal(number, handler)


def is_readable(stop: StopRequest) -> bool:
    return bool(select.select([stop], [], [], 0)[0])


def test_request_sets_the_flag_and_wakes_pollers_until_the_end(stop: StopRequest) -> None:
    assert not stop.requested
    assert not stop.poll()
    assert not is_readable(stop)
    stop.request()
    assert stop.requested
    assert stop.poll()
    assert is_readable(stop)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_signal_is_a_request(stop: StopRequest, number: signal.Signals) -> None:
    stop.catch_signals()
    signal.raise_signal(number)
    assert stop.requested
    assert is_readable(stop)


def test_poll_drains_the_descriptor_after_other_signals(stop: StopRequest) -> None:
    stop.catch_signals()
    signal.signal(signal.SIGUSR2, lambda *_: None)
    signal.pthread_kill(threading.get_ident(), signal.SIGUSR2)
    assert is_readable(stop)
    assert not stop.poll()
    assert not is_readable(stop)


def test_reading_the_flag_does_not_change_the_descriptor(stop: StopRequest) -> None:
    os.write(stop._write, b"x")
    assert not stop.requested
    assert is_readable(stop)


def test_requests_beyond_the_capacity_of_the_descriptor_do_not_block(stop: StopRequest) -> None:
    for _ in range(70_000):
        stop.request()
    assert stop.poll()
