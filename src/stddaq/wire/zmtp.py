"""ZMTP, the protocol of ZeroMQ over TCP: the end of a PUB or PUSH socket of one connection, without any I/O.

Live streams use it instead of libzmq's sockets, which do not report what each peer has missed.
The format is ZMTP 3.0 (https://rfc.zeromq.org/spec/23/) with the NULL mechanism, and ZMTP 2.0
(https://rfc.zeromq.org/spec/15/) with older peers such as libzmq 3.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stddaq.errors import StdDaqError
from stddaq.text import mismatch

Buffer = bytes | bytearray | memoryview

_SIGNATURE = b"\xff" + bytes(8) + b"\x7f"
_VERSION = 3
_GREETING_BYTES = 64
_MECHANISM = b"NULL".ljust(20, b"\0")
_MORE, _LONG, _COMMAND = 1, 2, 4
# Subscribers send topics and commands of some tens of bytes.
MAX_FRAME_BYTES = 8192
MAX_TOPICS = 1000


class ZmtpError(StdDaqError):
    """The peer is not a ZMTP socket of the kind that receives."""


@dataclass(frozen=True, slots=True)
class SocketKind:
    """A kind of socket that sends: its name and its number in ZMTP 2.0, and those of its peers."""

    name: str
    number: int
    peers: Mapping[str, int]

    @property
    def expected(self) -> str:
        """Its peers, for messages."""
        return " or ".join(f"{number} ({name})" for name, number in self.peers.items())


PUB = SocketKind("PUB", 1, {"SUB": 2, "XSUB": 10})
PUSH = SocketKind("PUSH", 8, {"PULL": 7})


class PublisherSession:
    """The protocol of one connection. Feed it received bytes, and send what it returns.

    Attributes:
        topics: subscribed prefixes, and how often the subscriber has subscribed to each. A PULL socket gets
            everything from the handshake on.
        is_open: whether the handshake is complete.
    """

    def __init__(self, kind: SocketKind = PUB) -> None:
        self._kind = kind
        self.topics: dict[bytes, int] = {}
        self.is_open = False
        self._received = bytearray()
        self._version = 0
        self._awaits_greeting = True

    @staticmethod
    def opening() -> bytes:
        """Return what to send first; the rest of the greeting depends on the peer's version."""
        return _SIGNATURE + bytes([_VERSION])

    @property
    def has_received(self) -> bool:
        """Whether the peer has sent anything."""
        return bool(self._version or self._received)

    def receive(self, data: bytes) -> bytes:
        """Process received bytes. Return the answer to send. Raise `ZmtpError`."""
        self._received += data
        answer = b""
        if not self._version:
            answer += self._read_version()
        if self._version and self._awaits_greeting:
            answer += self._read_greeting()
        if not self._awaits_greeting:
            while (frame := self._next_frame()) is not None:
                answer += self._process(*frame)
        return answer

    def wants(self, first_part: Buffer) -> bool:
        """Return whether the subscriber has subscribed to a message with this first part."""
        topics = self.topics
        if b"" in topics:
            return True
        start = bytes(first_part[:MAX_FRAME_BYTES])
        return any(start.startswith(topic) for topic in topics)

    def _read_version(self) -> bytes:
        received = self._received
        if received and received[0] != _SIGNATURE[0]:
            raise ZmtpError(mismatch("first byte", "0xff (ZMTP 2.0 or later)", f"{received[0]:#04x}"))
        if len(received) <= len(_SIGNATURE):
            return b""
        if not received[len(_SIGNATURE) - 1] & 1:
            raise ZmtpError(mismatch("signature", "that of ZMTP 2.0 or later", f"{bytes(received[:10])!a}"))
        self._version = 3 if received[len(_SIGNATURE)] >= _VERSION else 2
        if self._version == 2:
            # The socket type, and an empty identity.
            return bytes([self._kind.number, 0, 0])
        return bytes([0]) + _MECHANISM + bytes(_GREETING_BYTES - 12 - len(_MECHANISM))

    def _read_greeting(self) -> bytes:
        received = self._received
        if self._version == 2:
            if len(received) < 12:
                return b""
            if received[11] not in self._kind.peers.values():
                raise ZmtpError(mismatch("socket type", self._kind.expected, str(received[11])))
            del received[:12]
        else:
            if len(received) < _GREETING_BYTES:
                return b""
            mechanism = bytes(received[12:32])
            if mechanism != _MECHANISM:
                raise ZmtpError(mismatch("mechanism", "NULL", f"{mechanism.rstrip(bytes(1))!a}"))
            del received[:_GREETING_BYTES]
        self._awaits_greeting = False
        if self._version == 2:
            return b""
        return _command(b"READY", _property(b"Socket-Type", self._kind.name.encode()))

    def _next_frame(self) -> tuple[int, bytes] | None:
        """Remove the next complete frame from what was received; return its flags and body, or None."""
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
            raise ZmtpError(mismatch("frame", f"up to {MAX_FRAME_BYTES} bytes", str(size)))
        if len(received) < start + size:
            return None
        body = bytes(received[start : start + size])
        del received[: start + size]
        return flags, body

    def _process(self, flags: int, body: bytes) -> bytes:
        if not self.is_open:
            if self._version == 3:
                _check_ready(flags, body, self._kind)
            self.is_open = True  # In version 2 this frame is the identity.
            if self._kind is PUSH:
                self.topics[b""] = 1
            return b""
        if flags & _COMMAND:
            return self._process_command(body)
        if self._kind is PUB and body[:1] in (b"\1", b"\0"):
            self._subscribe(body[1:], is_new=body[0] == 1)
        return b""

    def _process_command(self, body: bytes) -> bytes:
        name, content = _split_command(body)
        if name == b"PING":
            return _command(b"PONG", content[2:18])  # The context of the ping follows its time to live.
        if self._kind is PUB and name in (b"SUBSCRIBE", b"CANCEL"):
            self._subscribe(content, is_new=name == b"SUBSCRIBE")
        return b""

    def _subscribe(self, topic: bytes, is_new: bool) -> None:
        count = self.topics.get(topic, 0) + (1 if is_new else -1)
        if count > 0:
            self.topics[topic] = count
        else:
            self.topics.pop(topic, None)
        if len(self.topics) > MAX_TOPICS:
            raise ZmtpError(mismatch("subscription", f"up to {MAX_TOPICS} topics", "more"))


def frames(parts: Sequence[Buffer]) -> list[Buffer]:
    """Return the frames of a multipart message, as any version sends them. Large parts are not copied."""
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


def _check_ready(flags: int, body: bytes, kind: SocketKind) -> None:
    name, content = _split_command(body)
    if not flags & _COMMAND or name != b"READY":
        raise ZmtpError(mismatch("handshake", "the command READY", f"{name[:20]!a}"))
    while content:
        key, rest = _split_command(content)
        size = int.from_bytes(rest[:4])
        found = rest[4 : 4 + size]
        if key.lower() == b"socket-type" and found not in map(str.encode, kind.peers):
            raise ZmtpError(mismatch("socket type", " or ".join(kind.peers), f"{found[:20]!a}"))
        content = rest[4 + size :]
