"""Counts the responses of the service by the method of the request and the class of their status."""

from __future__ import annotations

from itertools import product

from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Clients may send any method; a label has few values.
_METHODS = ("GET", "POST", "other")
_CLASSES = ("2xx", "3xx", "4xx", "5xx")
# The handshakes of WebSockets.
_WEBSOCKET, _ACCEPTED = "WEBSOCKET", "1xx"


class ResponseCounts:
    """The number of responses: `counts["GET", "2xx"]`."""

    def __init__(self) -> None:
        self.counts: dict[tuple[str, str], int] = dict.fromkeys(
            [*product(_METHODS, _CLASSES), (_WEBSOCKET, _ACCEPTED), (_WEBSOCKET, "4xx"), (_WEBSOCKET, "5xx")],
            0,
        )

    def counting(self, app: ASGIApp) -> ASGIApp:
        """Return `app`, with its responses counted."""

        async def counted(scope: Scope, receive: Receive, send: Send) -> None:
            given = _WEBSOCKET if scope["type"] == "websocket" else scope.get("method")
            method = given if given in (*_METHODS, _WEBSOCKET) else "other"

            async def send_counted(message: Message) -> None:
                if message["type"] == "websocket.accept":
                    self.counts[method, _ACCEPTED] += 1
                elif message["type"] in ("http.response.start", "websocket.http.response.start"):
                    self.counts[method, f"{message['status'] // 100}xx"] += 1
                await send(message)

            await app(scope, receive, send_counted)

        return counted
