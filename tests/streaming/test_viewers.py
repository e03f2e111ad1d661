"""The publishing socket with libzmq subscribers: received and dropped messages."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import count

import pytest
import zmq
from support.processes.deployment import wait_until
from support.processes.live_streams import Subscriber

from stddaq.streaming import viewer_queue, viewers
from stddaq.streaming.viewer_queue import ImageBuffers
from stddaq.streaming.viewers import Viewers
from stddaq.wire.zmtp import PUSH

SIZE = 100_000


@pytest.fixture
def publisher() -> Iterator[Viewers]:
    publisher = Viewers("tcp://127.0.0.1:0", ImageBuffers(SIZE))
    yield publisher
    publisher.close()


def until(publisher: Viewers, condition: Callable[[], object]) -> None:
    """Serve the viewers until the condition holds."""

    def attended() -> bool:
        publisher.attend()
        return bool(condition())

    wait_until(attended)


def received(publisher: Viewers, subscriber: Subscriber) -> list[bytes]:
    until(publisher, lambda: subscriber.socket.poll(0))
    return subscriber.receive()


def test_endpoint_has_the_port_that_the_system_chose(publisher: Viewers) -> None:
    assert publisher.endpoint == f"tcp://127.0.0.1:{publisher.port}"
    assert publisher.port > 0


def test_messages_of_any_size_and_number_of_parts_arrive_unchanged(publisher: Viewers) -> None:
    messages = [[b""], [b"a", b""], [b"", b"b"], [bytes(255), bytes(256)], [b"h", os.urandom(10**7), b"t"]]
    with Subscriber(publisher.endpoint) as subscriber:
        until(publisher, lambda: publisher.n_subscribed)
        for message in messages:
            assert publisher.send(message)
        for message in messages:
            assert received(publisher, subscriber) == message


def test_message_without_viewers_is_not_sent_and_not_dropped(publisher: Viewers) -> None:
    assert not publisher.send([b"x"])
    assert publisher.n_dropped == 0


def test_received_and_dropped_messages_of_a_slow_viewer_add_up(
    publisher: Viewers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(viewer_queue, "MAX_QUEUED_BYTES", 10 * SIZE)
    n_messages = 300
    with Subscriber(publisher.endpoint, queue=1) as slow, Subscriber(publisher.endpoint) as good:
        until(publisher, lambda: publisher.n_subscribed == 2)
        for i in range(n_messages):
            publisher.send([b"%d" % i, bytes(SIZE)])
            assert received(publisher, good)[0] == b"%d" % i
        assert publisher.n_dropped > 0
        got: list[int] = []
        until(
            publisher,
            lambda: (
                got.append(int(slow.receive()[0])) if slow.socket.poll(10) else None,
                len(got) + publisher.n_dropped >= n_messages,
            )[1],
        )
        assert got == sorted(set(got))
        assert len(got) + publisher.n_dropped == n_messages


def test_one_image_is_queued_however_large_it_is(publisher: Viewers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viewer_queue, "MAX_QUEUED_BYTES", 10)
    with Subscriber(publisher.endpoint) as subscriber:
        until(publisher, lambda: publisher.n_subscribed)
        assert publisher.send([b"h", bytes(10**8)])
        assert not publisher.send([b"h", bytes(100)])
        assert len(received(publisher, subscriber)[1]) == 10**8
        assert publisher.n_dropped == 1


def test_further_viewers_wait_until_one_leaves(publisher: Viewers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viewers, "MAX_VIEWERS", 1)
    with Subscriber(publisher.endpoint) as second:
        with Subscriber(publisher.endpoint):
            until(publisher, lambda: publisher.n_subscribed == 1)
        until(publisher, lambda: publisher.send([b"x"]) and second.socket.poll(0))


def test_viewers_without_subscription_make_room_for_others(
    publisher: Viewers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(viewers, "MAX_VIEWERS", 2)
    monkeypatch.setattr(viewers, "SUBSCRIPTION_TIMEOUT_S", 0)
    with zmq.Context() as context:
        idle = [context.socket(zmq.SUB) for _ in range(2)]
        for peer in idle:
            peer.linger = 0
            peer.reconnect_ivl = -1
            peer.connect(publisher.endpoint)
        until(publisher, lambda: len(publisher._viewers) == 2)
        publisher.close_silent()
        assert len(publisher._viewers) == 2, "no other viewer waits"
        with Subscriber(publisher.endpoint) as subscriber:

            def is_subscribed() -> bool:
                publisher.close_silent()
                return publisher.n_subscribed == 1

            until(publisher, is_subscribed)
            assert publisher.send([b"x"])
            assert received(publisher, subscriber) == [b"x"]
        for peer in idle:
            peer.close()


def test_connection_without_handshake_is_closed_after_the_timeout(
    publisher: Viewers, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zmq.Context() as context, context.socket(zmq.STREAM) as silent:
        silent.linger = 0
        silent.connect(publisher.endpoint)
        # libzmq reports the connection, then delivers the greeting.
        until(publisher, lambda: silent.poll(0))
        silent.recv_multipart()
        until(publisher, lambda: silent.poll(0))
        assert silent.recv_multipart()[1]
        publisher.close_silent()
        assert not silent.poll(100)
        monkeypatch.setattr(viewers, "HANDSHAKE_TIMEOUT_S", 0)
        publisher.close_silent()
        assert silent.poll(60_000)
        assert silent.recv_multipart()[1] == b""


@pytest.fixture
def pushing() -> Iterator[Viewers]:
    publisher = Viewers("tcp://127.0.0.1:0", ImageBuffers(SIZE), PUSH)
    yield publisher
    publisher.close()


@pytest.fixture
def pullers() -> Iterator[Callable[[str], zmq.Socket[bytes]]]:
    """Return a function that connects PULL sockets."""
    connected: list[zmq.Socket[bytes]] = []
    with zmq.Context() as context:

        def connect(endpoint: str) -> zmq.Socket[bytes]:
            puller = context.socket(zmq.PULL)
            connected.append(puller)
            puller.linger, puller.rcvhwm, puller.rcvtimeo = 0, 1, 20_000
            puller.connect(endpoint)
            return puller

        yield connect
        for puller in connected:
            puller.close()


def test_pushed_messages_are_dealt_to_the_pullers_in_turn(
    pushing: Viewers, pullers: Callable[[str], zmq.Socket[bytes]]
) -> None:
    connected = [pullers(pushing.endpoint) for _ in range(3)]
    until(pushing, lambda: pushing.n_subscribed == 3)
    for number in range(9):
        assert pushing.send([b"%d" % number, b"x"])
    found = [[puller.recv_multipart()[0] for _ in range(3)] for puller in connected]
    assert sorted(found) == [[b"0", b"3", b"6"], [b"1", b"4", b"7"], [b"2", b"5", b"8"]]
    assert pushing.n_dropped == 0


def test_images_go_to_other_pullers_while_one_does_not_read(
    pushing: Viewers, pullers: Callable[[str], zmq.Socket[bytes]]
) -> None:
    stopped = pullers(pushing.endpoint)
    until(pushing, lambda: pushing.n_subscribed == 1)
    image, ids = bytes(10**6), count()
    sent: list[int] = []

    def send() -> bool:
        number = next(ids)
        if pushing.send([b"%d" % number, image]):
            sent.append(number)
        return number in sent

    while send():
        assert len(sent) < 100
    assert pushing.n_dropped == 1
    good = pullers(pushing.endpoint)
    until(pushing, lambda: pushing.n_subscribed == 2)
    until(pushing, lambda: (send(), good.poll(0))[1])
    received: list[int] = []

    def has_all() -> bool:
        for puller in (good, stopped):
            while puller.poll(0):
                received.append(int(puller.recv_multipart()[0]))
        return sorted(received) == sent

    until(pushing, has_all)
    assert pushing.n_dropped == next(ids) - len(sent)


def test_changed_kind_of_socket_disconnects_the_viewers_of_the_other(
    publisher: Viewers, pullers: Callable[[str], zmq.Socket[bytes]]
) -> None:
    with Subscriber(publisher.endpoint):
        until(publisher, lambda: publisher.n_subscribed == 1)
        publisher.use(PUSH)
        assert publisher.n_subscribed == 0
        puller = pullers(publisher.endpoint)
        until(publisher, lambda: publisher.n_subscribed == 1)
        assert publisher.send([b"x"])
        assert puller.recv_multipart() == [b"x"]


def test_buffer_is_reused_only_after_every_viewer_has_received_it() -> None:
    pool = ImageBuffers(10**7)
    publisher = Viewers("tcp://127.0.0.1:0", pool)
    used: set[int] = set()
    try:
        with Subscriber(publisher.endpoint, queue=1) as one, Subscriber(publisher.endpoint) as other:
            until(publisher, lambda: publisher.n_subscribed == 2)
            for i in range(5):
                image = pool.take()
                image[:] = bytes([i]) * len(image)
                used.add(id(image.obj))
                publisher.send([b"h", image], image)
            # A buffer that is reused too early would give an earlier image the content of a later one.
            for subscriber in (other, one):
                for i in range(5):
                    assert set(received(publisher, subscriber)[1][::1000]) == {i}
        assert id(pool.take().obj) in used
    finally:
        publisher.close()
