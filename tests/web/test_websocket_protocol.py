"""What a browser may send without end costs no memory: pings whose answers it does not read, fragments."""

from __future__ import annotations

import asyncio
import struct
from typing import Any

import pytest
import uvicorn
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.server import ServerState
from websockets.frames import Frame, Opcode

from stddaq.web.websocket_protocol import MAX_FRAGMENTS, PARTS, WebSocketProtocol

HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
TEXT, CONTINUATION, PING, PONG, CLOSE, FIN = 1, 0, 9, 10, 8, 0x80


def frame(opcode: int, content: bytes = b"") -> bytes:
    """Return a frame of a client, with a mask that changes nothing."""
    return bytes([opcode, 0x80 | len(content), 0, 0, 0, 0]) + content


class _Connection(asyncio.Transport):
    """A connection whose writes are kept, to a protocol that has accepted a WebSocket."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)})
        self.written = b""
        self.received: list[dict[str, Any]] = []
        self.is_closed = False
        config = uvicorn.Config(
            self._app, interface="asgi3", ws_ping_interval=None, ws_max_size=4096, log_config=None
        )
        config.load()
        self.protocol = WebSocketProtocol(config, ServerState(), {})

    async def _app(self, _scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        while not self.received or self.received[-1]["type"] != "websocket.disconnect":
            self.received.append(await receive())

    async def accepted(self) -> _Connection:
        """Return this after the handshake."""
        self.protocol.connection_made(self)
        self.protocol.data_received(HANDSHAKE)
        while b"101 Switching" not in self.written:
            await asyncio.sleep(0)
        self.written = b""
        return self

    def write(self, data: Any) -> None:
        self.written += data

    def close(self) -> None:
        self.is_closed = True

    def is_closing(self) -> bool:
        return self.is_closed

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


def test_pings_of_a_client_that_does_not_read_are_answered_once_when_it_reads() -> None:
    async def check() -> None:
        connection = await _Connection().accepted()
        protocol = connection.protocol
        protocol.data_received(frame(FIN | PING, b"first"))
        assert connection.written == bytes([FIN | PONG, 5]) + b"first"
        protocol.pause_writing()
        for number in range(10_000):
            protocol.data_received(frame(FIN | PING, b"%d" % number))
        assert len(connection.written) == 7
        protocol.resume_writing()
        assert connection.written[7:] == bytes([FIN | PONG, 4]) + b"9999"
        protocol.connection_lost(None)

    asyncio.run(asyncio.wait_for(check(), 20))


def test_message_of_endless_fragments_ends_the_connection() -> None:
    async def check() -> None:
        connection = await _Connection().accepted()
        protocol = connection.protocol
        protocol.data_received(frame(TEXT, b"{"))
        for _ in range(MAX_FRAGMENTS - 2):
            protocol.data_received(frame(CONTINUATION))
        protocol.data_received(frame(FIN | CONTINUATION, b"}"))
        while len(connection.received) < 2:
            await asyncio.sleep(0)
        assert connection.received[1]["text"] == "{}"
        protocol.data_received(frame(TEXT))
        for _ in range(10 * MAX_FRAGMENTS):
            protocol.data_received(frame(CONTINUATION))
        assert len(protocol.frames) <= MAX_FRAGMENTS
        assert connection.is_closed
        assert connection.written == struct.pack("!BBH", FIN | CLOSE, 2, 1009)
        protocol.connection_lost(None)

    asyncio.run(asyncio.wait_for(check(), 20))


def test_parts_are_one_message_as_the_library_would_send_it() -> None:
    async def check() -> None:
        connection = await _Connection().accepted()
        protocol = connection.protocol
        for n_bytes in (0, 120, 124, 65530, 65534, 100_000):
            content = bytes(range(250)) * (n_bytes // 250) + bytes(n_bytes % 250)
            connection.written = b""
            message = {"type": "websocket.send", PARTS: (b"head", memoryview(content))}
            await protocol.send(message)
            assert connection.written == Frame(Opcode.BINARY, b"head" + content).serialize(mask=False)
        await protocol.send({"type": "websocket.close"})
        with pytest.raises(ClientDisconnected):
            await protocol.send({"type": "websocket.send", PARTS: (b"head",)})
        protocol.connection_lost(None)

    asyncio.run(asyncio.wait_for(check(), 20))
