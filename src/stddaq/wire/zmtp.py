"""ZMTP, the protocol of ZeroMQ over TCP: the publisher's side of one connection, without any I/O.

Live streams use it instead of libzmq's PUB socket, which does not say which subscriber has missed what.
Source of the format: ZMTP 3.0 (rfc.zeromq.org/spec/23) with the NULL mechanism, and the older ZMTP 2.0
(spec/15) for peers that speak no later one, as libzmq 3 and its relatives.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from stddaq.errors import StdDaqError

Buffer = bytes | bytearray | memoryview

_SIGNATURE = b"\xff" + bytes(8) + b"\x7f"
_VERSION = 3
_GREETING_BYTES = 64
_MECHANISM = b"NULL".ljust(20, b"\0")
_PUB, _SUB, _XSUB = 1, 2, 10
_MORE, _LONG, _COMMAND = 1, 2, 4
# A topic or a command; what subscribers send has tens of bytes.
MAX_FRAME_BYTES = 8192
MAX_TOPICS = 1000


class ZmtpError(StdDaqError):
    """The peer is no subscriber that we can talk to."""


class PublisherSession:
    """One subscriber's connection: give it what was received, send what it returns.

    Attributes:
        topics: how often the subscriber has subscribed to each prefix.
        is_open: whether both sides have introduced themselves.
    """

    def __init__(self) -> None:
        self.topics: dict[bytes, int] = {}
        self.is_open = False
        self._received = bytearray()
        self._version = 0
        self._awaits_greeting = True

    @staticmethod
    def opening() -> bytes:
        """What to send first; the rest depends on the peer's version."""
        return _SIGNATURE + bytes([_VERSION])

    @property
    def has_spoken(self) -> bool:
        """Whether anything was received."""
        return bool(self._version or self._received)

    def receive(self, data: bytes) -> bytes:
        """Take received bytes in. Returns what to answer. Raises `ZmtpError`."""
        self._received += data
        answer = b""
        if not self._version:
            answer += self._read_version()
        if self._version and self._awaits_greeting:
            answer += self._read_greeting()
        if not self._awaits_greeting:
            while (frame := self._next_frame()) is not None:
                answer += self._take(*frame)
        return answer

    def wants(self, first_part: Buffer) -> bool:
        """Whether a message with this first part goes to the subscriber."""
        topics = self.topics
        if b"" in topics:
            return True
        start = bytes(first_part[:MAX_FRAME_BYTES])
        return any(start.startswith(topic) for topic in topics)

    def _read_version(self) -> bytes:
        received = self._received
        if received and received[0] != _SIGNATURE[0]:
            raise ZmtpError(f"found byte {received[0]:#04x} first, allowed is the 0xff of ZMTP 2.0 or later")
        if len(received) <= len(_SIGNATURE):
            return b""
        if not received[len(_SIGNATURE) - 1] & 1:
            raise ZmtpError("found no signature of ZMTP 2.0 or later")
        self._version = 3 if received[len(_SIGNATURE)] >= _VERSION else 2
        if self._version == 2:
            # Kind of socket, and an identity of no bytes.
            return bytes([_PUB, 0, 0])
        return bytes([0]) + _MECHANISM + bytes(_GREETING_BYTES - 12 - len(_MECHANISM))

    def _read_greeting(self) -> bytes:
        received = self._received
        if self._version == 2:
            if len(received) < 12:
                return b""
            if received[11] not in (_SUB, _XSUB):
                raise ZmtpError(f"found a socket of kind {received[11]}, allowed is SUB or XSUB")
            del received[:12]
        else:
            if len(received) < _GREETING_BYTES:
                return b""
            mechanism = bytes(received[12:32])
            if mechanism != _MECHANISM:
                raise ZmtpError(f"found the mechanism {mechanism.rstrip(bytes(1))!a}, allowed is NULL")
            del received[:_GREETING_BYTES]
        self._awaits_greeting = False
        return b"" if self._version == 2 else _command(b"READY", _property(b"Socket-Type", b"PUB"))

    def _next_frame(self) -> tuple[int, bytes] | None:
        """Flags and body of the next whole frame that was received."""
        received = self._received
        if len(received) < 2:
            return None
        flags, start = received[0], 2
        size = received[1]
        if flags & _LONG:
            if len(received) < 9:
                return None
            size, start = int.from_bytes(received[1:9]), 9
        if size > MAX_FRAME_BYTES:
            raise ZmtpError(f"found a frame of {size} bytes, allowed are {MAX_FRAME_BYTES}")
        if len(received) < start + size:
            return None
        body = bytes(received[start : start + size])
        del received[: start + size]
        return flags, body

    def _take(self, flags: int, body: bytes) -> bytes:
        if not self.is_open:
            if self._version == 3:
                _check_ready(flags, body)
            self.is_open = True  # In version 2 the frame was the identity.
            return b""
        if flags & _COMMAND:
            return self._obey(body)
        if body[:1] in (b"\1", b"\0"):
            self._subscribe(body[1:], is_new=body[0] == 1)
        return b""

    def _obey(self, body: bytes) -> bytes:
        name, content = _split_command(body)
        if name == b"PING":
            return _command(b"PONG", content[2:18])  # After the time to live, the context of the ping.
        if name in (b"SUBSCRIBE", b"CANCEL"):
            self._subscribe(content, is_new=name == b"SUBSCRIBE")
        return b""

    def _subscribe(self, topic: bytes, is_new: bool) -> None:
        count = self.topics.get(topic, 0) + (1 if is_new else -1)
        if count > 0:
            self.topics[topic] = count
        else:
            self.topics.pop(topic, None)
        if len(self.topics) > MAX_TOPICS:
            raise ZmtpError(f"found more than {MAX_TOPICS} topics")


def frames(parts: Sequence[Buffer]) -> list[Buffer]:
    """A multipart message as what goes over the wire, in any version; the parts are not copied."""
    buffers: list[Buffer] = []
    last = len(parts) - 1
    for position, part in enumerate(parts):
        size = memoryview(part).nbytes
        more = _MORE if position < last else 0
        if size < 256:
            buffers.append(bytes([more, size]) + part)
        else:
            buffers += (struct.pack(">BQ", more | _LONG, size), part)
    return buffers


def _command(name: bytes, content: bytes) -> bytes:
    body = bytes([len(name)]) + name + content
    return bytes([_COMMAND, len(body)]) + body


def _property(name: bytes, value: bytes) -> bytes:
    return bytes([len(name)]) + name + struct.pack(">I", len(value)) + value


def _split_command(body: bytes) -> tuple[bytes, bytes]:
    end = 1 + (body[0] if body else 0)
    return body[1:end], body[end:]


def _check_ready(flags: int, body: bytes) -> None:
    name, content = _split_command(body)
    if not flags & _COMMAND or name != b"READY":
        raise ZmtpError(f"found {name[:20]!a}, allowed is the command READY")
    while content:
        key, rest = _split_command(content)
        size = int.from_bytes(rest[:4])
        if key.lower() == b"socket-type" and rest[4 : 4 + size] not in (b"SUB", b"XSUB"):
            raise ZmtpError(f"found a socket of type {rest[4 : 4 + size][:20]!a}, allowed is SUB or XSUB")
        content = rest[4 + size :]
