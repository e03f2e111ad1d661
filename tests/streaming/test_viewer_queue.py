"""The queue of a viewer is bounded in bytes and counts exactly, whatever a connection takes at a time."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stddaq.streaming import viewer_queue
from stddaq.streaming.viewer_queue import ImageBuffers, QueuedMessage, ViewerQueue
from stddaq.wire.zmtp import Buffer, ZmtpError, frames

POOL = ImageBuffers(100)


def message(*parts: bytes) -> QueuedMessage:
    return QueuedMessage(parts, None, POOL)


def wire(*parts: bytes) -> bytes:
    return b"".join(frames(parts))


def send(queue: ViewerQueue, n_bytes: int) -> bytes:
    """Return the bytes of a connection that takes up to `n_bytes`."""
    sent = b"".join(queue.next_buffers())[:n_bytes]
    queue.advance(len(sent))
    return sent


@given(st.lists(st.lists(st.binary(max_size=600), min_size=1, max_size=3)), st.integers(1, 700))
def test_messages_are_sent_whole_and_in_order(messages: list[list[bytes]], n_bytes: int) -> None:
    queue, sent = ViewerQueue(), b""
    for parts in messages:
        assert queue.offer(message(*parts))
    while not queue.is_empty:
        sent += send(queue, n_bytes)
    assert sent == b"".join(wire(*parts) for parts in messages)
    assert (queue.n_sent, queue.n_dropped) == (len(messages), 0)


def test_message_counts_as_sent_only_after_its_last_byte() -> None:
    queue = ViewerQueue()
    queue.offer(message(b"head", bytes(300)))
    total = len(wire(b"head", bytes(300)))
    send(queue, total - 1)
    assert (queue.n_sent, queue.is_empty) == (0, False)
    send(queue, 1)
    assert (queue.n_sent, queue.is_empty) == (1, True)


def test_message_that_does_not_fit_is_dropped_whole_and_room_is_regained(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(viewer_queue, "MAX_QUEUED_BYTES", 3000)
    queue = ViewerQueue()
    offered = [queue.offer(message(os.urandom(1000))) for _ in range(4)]
    assert offered == [True, True, False, False]
    assert queue.n_dropped == 2
    send(queue, 1009)
    assert queue.offer(message(bytes(900)))


def test_first_message_fits_however_large_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viewer_queue, "MAX_QUEUED_BYTES", 10)
    queue = ViewerQueue()
    assert queue.offer(message(bytes(1000)))
    assert not queue.offer(message(b"x"))


def test_answer_follows_the_message_that_is_being_sent() -> None:
    queue = ViewerQueue()
    queue.offer(message(b"h", bytes(300)))
    sent = send(queue, 50)
    queue.answer(b"pong")
    sent += send(queue, 10_000)
    assert sent == wire(b"h", bytes(300)) + b"pong"
    assert queue.n_sent == 1


def test_answers_that_are_never_read_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viewer_queue, "MAX_QUEUED_BUFFERS", 5)
    queue = ViewerQueue()
    for _ in range(5):
        queue.answer(b"pong")
    with pytest.raises(ZmtpError, match="pings"):
        queue.answer(b"pong")


def test_image_buffer_is_returned_after_the_last_viewer() -> None:
    pool = ImageBuffers(100)
    image = pool.take()
    parts: list[Buffer] = [b"h", image]
    shared = QueuedMessage(parts, image, pool)
    one, other = ViewerQueue(), ViewerQueue()
    for queue in (one, other):
        queue.offer(shared)
    shared.release()
    send(one, 1000)
    assert pool.take() is not image
    other.clear()
    assert pool.take() is image


def test_only_as_many_buffers_are_kept_as_a_viewer_may_have_queued(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viewer_queue, "MAX_QUEUED_BYTES", 300)
    pool = ImageBuffers(100)
    taken = [pool.take() for _ in range(5)]
    for buffer in taken:
        pool.give_back(buffer)
    again = {id(pool.take()) for _ in range(5)}
    assert len(again & {id(buffer) for buffer in taken}) == 3
