"""The WebSocket protocol of uvicorn, with limits for what a browser may send without end, and without copies
of what it is sent.

uvicorn 0.54 answers each ping whether or not the client reads, and does not limit the number of fragments of
a message. websockets 17 copies each message that it sends, which takes more time than sending an image. No
upstream issue is known of these.
"""

from __future__ import annotations

import struct
from typing import Any

from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import CloseCode, Frame, Opcode
from websockets.protocol import State

# Key of the ASGI message `websocket.send`, instead of `bytes`: buffers whose bytes are one binary message.
PARTS = "stddaq.parts"
# No browser divides a message of a few KiB.
MAX_FRAGMENTS = 64


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """One connection."""

    _waiting_pong = b""

    async def send(self, message: Any) -> None:
        """Send an ASGI message. Raise `ClientDisconnected`."""
        if PARTS not in message:
            await super().send(message)
            return
        parts = message[PARTS]
        await self.writable.wait()
        if self.disconnected or self.close_sent or self.conn.state is not State.OPEN:
            raise ClientDisconnected
        self.transport.write(_frame_start(sum(map(len, parts))) + parts[0])
        for part in parts[1:]:
            self.transport.write(part)

    def handle_ping(self) -> None:
        """Answer. While a client does not read, only the pings that came last wait for their answers."""
        pong = b"".join(self.conn.data_to_send())
        if self.writable.is_set():
            self.transport.write(pong)
        else:
            self._waiting_pong = pong

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._waiting_pong:
            pong, self._waiting_pong = self._waiting_pong, b""
            self.transport.write(pong)

    def handle_cont(self, event: Frame) -> None:
        if len(self.frames) < MAX_FRAGMENTS:
            super().handle_cont(event)
        elif not self.close_sent:
            self.conn.send_close(CloseCode.MESSAGE_TOO_BIG)
            self.handle_parser_exception()


def _frame_start(n_bytes: int) -> bytes:
    """Return the start of a frame that is a whole binary message of a server: RFC 6455, 5.2."""
    last = 0x80 | Opcode.BINARY
    if n_bytes < 126:
        return struct.pack("!BB", last, n_bytes)
    if n_bytes < 65536:
        return struct.pack("!BBH", last, 126, n_bytes)
    return struct.pack("!BBQ", last, 127, n_bytes)
