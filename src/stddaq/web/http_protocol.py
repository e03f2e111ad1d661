"""The HTTP protocol of uvicorn, corrected for garbage after a request that is still being answered.

uvicorn 0.54 refuses the garbage at once, and then fails to send the answer to the request, with a traceback
(`LocalProtocolError: ... state=MUST_CLOSE`). No upstream issue is known.
"""

from __future__ import annotations

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


class HttpProtocol(H11Protocol):
    """One connection."""

    def send_400_response(self, msg: str) -> None:
        """Refuse what was received, and drop the answer to a request that is still running."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.close()
