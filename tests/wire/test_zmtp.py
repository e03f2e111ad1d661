"""ZMTP: the handshake of both versions, subscriptions and malformed input."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stddaq.wire.zmtp import (
    MAX_FRAME_BYTES,
    MAX_TOPICS,
    PUB,
    PUSH,
    PublisherSession,
    SocketKind,
    ZmtpError,
    frames,
)

SIGNATURE = b"\xff" + bytes(8) + b"\x7f"
GREETING_3 = SIGNATURE + b"\3\0" + b"NULL".ljust(20, b"\0") + bytes(32)
READY = b"\x05READY\x0bSocket-Type\0\0\0\x03SUB\x08Identity\0\0\0\0"


def command(body: bytes) -> bytes:
    return bytes([4, len(body)]) + body


def opened() -> PublisherSession:
    session = PublisherSession()
    session.receive(GREETING_3 + command(READY))
    assert session.is_open
    return session


def test_greeting_and_answer_are_those_of_version_3() -> None:
    session = PublisherSession()
    sent = session.opening()
    sent += session.receive(GREETING_3)
    assert sent[:64] == SIGNATURE + b"\3\0" + b"NULL".ljust(20, b"\0") + bytes(32)
    assert sent[64:] == command(b"\x05READY\x0bSocket-Type\0\0\0\x03PUB")
    assert not session.is_open
    assert session.receive(command(READY)) == b""
    assert session.is_open


@given(st.lists(st.integers(1, 120), max_size=10))
def test_bytes_may_arrive_in_any_pieces(cuts: list[int]) -> None:
    received = GREETING_3 + command(READY) + b"\0\3\1ab" + b"\0\1\1"
    session = PublisherSession()
    begin = 0
    for end in [*sorted(cuts), len(received)]:
        session.receive(received[begin:end])
        begin = max(begin, end)
    assert session.topics == {b"ab": 1, b"": 1}


def test_push_socket_sends_everything_to_a_puller_and_ignores_subscriptions() -> None:
    session = PublisherSession(PUSH)
    sent = session.opening() + session.receive(GREETING_3)
    assert sent[64:] == command(b"\x05READY\x0bSocket-Type\0\0\0\x04PUSH")
    session.receive(command(READY.replace(b"\x03SUB", b"\x04PULL")))
    assert session.wants(b"anything")
    session.receive(b"\0\1\0")
    assert session.topics == {b"": 1}
    # Version 2: the type of the socket, and an empty identity.
    old = PublisherSession(PUSH)
    assert old.receive(SIGNATURE + b"\1" + b"\7" + b"\0\0") == b"\x08\0\0"
    assert old.wants(b"anything")


@pytest.mark.parametrize(("kind", "name", "number"), [(PUSH, b"\x03SUB", 2), (PUB, b"\x04PULL", 7)])
def test_peer_of_the_other_kind_of_socket_is_refused(kind: SocketKind, name: bytes, number: int) -> None:
    session = PublisherSession(kind)
    session.receive(GREETING_3)
    with pytest.raises(ZmtpError, match="socket type: expected"):
        session.receive(command(READY.replace(b"\x03SUB", name)))
    with pytest.raises(ZmtpError, match="socket type: expected"):
        PublisherSession(kind).receive(SIGNATURE + b"\1" + bytes([number, 0, 0]))


def test_subscriber_of_version_2_is_answered_in_version_2() -> None:
    session = PublisherSession()
    # Signature, revision, SUB, an empty identity, a subscription to everything.
    answer = session.receive(SIGNATURE + b"\1" + b"\2" + b"\0\0" + b"\0\1\1")
    assert answer == b"\1\0\0"
    assert session.is_open
    assert session.wants(b"anything")


def test_topics_are_prefixes_that_can_be_added_and_removed() -> None:
    session = opened()
    assert not session.wants(b"abc")
    session.receive(b"\0\3\1ab\0\3\1ab\0\2\1x")
    assert session.wants(b"abc")
    assert session.wants(b"xyz")
    assert not session.wants(b"b")
    session.receive(b"\0\3\0ab")
    assert session.wants(b"abc")
    session.receive(b"\0\3\0ab")
    assert not session.wants(b"abc")


def test_subscriptions_as_commands_are_understood() -> None:
    session = opened()
    session.receive(command(b"\x09SUBSCRIBEab"))
    assert session.wants(b"abc")
    session.receive(command(b"\x06CANCELab"))
    assert not session.wants(b"abc")


def test_ping_is_answered_with_its_context() -> None:
    assert opened().receive(command(b"\x04PING\0\x0acontext")) == command(b"\x04PONGcontext")


def test_messages_that_are_not_subscriptions_are_ignored() -> None:
    session = opened()
    assert session.receive(b"\0\3\7ab" + b"\0\0" + command(b"\x05OTHERxyz")) == b""
    assert session.topics == {}


@pytest.mark.parametrize(
    ("received", "reason"),
    [
        (b"GET / HTTP/1.1\r\n", "0x47"),
        (b"\xff" + bytes(8) + b"\x00\3", "signature"),
        (SIGNATURE + b"\1" + b"\1" + b"\0\0", "got 1"),
        (SIGNATURE + b"\3\0" + b"PLAIN".ljust(20, b"\0") + bytes(32), "PLAIN"),
        (GREETING_3 + command(READY.replace(b"SUB", b"REQ")), "REQ"),
        (GREETING_3 + b"\0\1\1", "READY"),
        (GREETING_3 + command(b"\x05ERROR\0"), "ERROR"),
        (GREETING_3 + b"\2" + struct.pack(">Q", 2**63), "bytes"),
        (GREETING_3 + command(READY) + b"\2" + struct.pack(">Q", MAX_FRAME_BYTES + 1), "bytes"),
    ],
)
def test_peer_that_is_not_a_subscriber_is_refused_with_the_reason(received: bytes, reason: str) -> None:
    with pytest.raises(ZmtpError) as refused:
        PublisherSession().receive(received)
    assert reason in str(refused.value)


def test_too_many_topics_are_refused() -> None:
    session = opened()
    for i in range(MAX_TOPICS):
        session.receive(b"\0\5\1" + struct.pack(">I", i))
    with pytest.raises(ZmtpError, match="topics"):
        session.receive(b"\0\5\1" + struct.pack(">I", MAX_TOPICS))


@given(st.binary(max_size=400))
def test_any_bytes_are_processed_or_refused(received: bytes) -> None:
    for prefix in (b"", SIGNATURE, GREETING_3, GREETING_3 + command(READY)):
        with contextlib.suppress(ZmtpError):
            PublisherSession().receive(prefix + received)


def test_frames_are_short_or_long_and_flagged_when_more_follow() -> None:
    short, long_head, long_body = frames((b"head", bytes(256)))
    assert short == b"\1\4head"
    assert long_head == b"\2" + struct.pack(">Q", 256)
    assert long_body == bytes(256)
    assert frames((b"",)) == [b"\0\0"]
    assert b"".join(frames((bytes(255),))) == b"\0\xff" + bytes(255)
