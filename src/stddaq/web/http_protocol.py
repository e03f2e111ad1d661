"""The HTTP protocol of uvicorn, with a limit on the time of a header and a correction for garbage.

uvicorn 0.54 refuses the garbage at once, and then fails to send the answer to the request, with a traceback
(`LocalProtocolError: ... state=MUST_CLOSE`). No upstream issue is known.
"""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

# From the connection, or the first byte of a further request, to the end of its header.
HEADER_TIMEOUT_S = 10.0


class HttpProtocol(H11Protocol):
    """One connection. uvicorn itself limits only the time between an answer and the next request."""

    _header_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().connection_made(transport)
        self._await_header()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._end_header()
        elif self._header_timer is None and self.cycle.response_complete:
            self._await_header()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_header()
        super().connection_lost(exc)

    def _await_header(self) -> None:
        self._header_timer = self.loop.call_later(HEADER_TIMEOUT_S, self.transport.abort)

    def _end_header(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def send_400_response(self, msg: str) -> None:
        """Refuse what was received, and drop the answer to a request that is still running."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.close()
