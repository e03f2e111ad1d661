"""Counts the responses of the service by the class of their status."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_CLASSES = ("1xx", "2xx", "3xx", "4xx", "5xx")


class ResponseCounts:
    """The number of responses, `by_class`: `2xx`, `4xx`, ..."""

    def __init__(self) -> None:
        self.by_class: dict[str, int] = dict.fromkeys(_CLASSES, 0)

    def counting(self, app: ASGIApp) -> ASGIApp:
        """Return `app`, with its responses counted."""

        async def counted(scope: Scope, receive: Receive, send: Send) -> None:
            async def send_counted(message: Message) -> None:
                if message["type"] == "http.response.start":
                    self.by_class[f"{message['status'] // 100}xx"] += 1
                await send(message)

            await app(scope, receive, send_counted)

        return counted
