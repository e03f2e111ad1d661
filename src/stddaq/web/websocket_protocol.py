"""The WebSocket protocol of uvicorn, with limits for what a browser may send without end.

uvicorn 0.54 answers each ping whether or not the client reads, and does not limit the number of fragments of
a message. No upstream issue is known.
"""

from __future__ import annotations

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import CloseCode, Frame

# No browser divides a message of a few KiB.
MAX_FRAGMENTS = 64


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """One connection."""

    _waiting_pong = b""

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
