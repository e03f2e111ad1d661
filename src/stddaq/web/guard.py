"""The checks that every request must pass: its token, its origin, the type and length of its body.

WebSocket handshakes are checked like requests, before they are accepted.

Bodies must be declared as JSON, which browsers do not send to another site without asking it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stddaq.daemon.access import Access, AccessError
from stddaq.errors import StdDaqError
from stddaq.text import mismatch
from stddaq.web.responses import refusal

MAX_BODY_BYTES = 2**20
BODY_TIMEOUT_S = 10.0


class HttpRefusalError(StdDaqError, ValueError):
    """A request does not pass the checks.

    Attributes:
        response: the response that says so.
    """

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.response = refusal(status, detail, headers)


class Guard:
    """ASGI middleware: HTTP requests and WebSocket handshakes pass if `access` allows them."""

    def __init__(self, app: ASGIApp, access: Access | None = None) -> None:
        self._app, self._access = app, access or Access()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            self._check_access(headers)
            _check_site(scope, headers)
            if scope["type"] == "http":
                body = await _read_body(headers, receive)
                _check_type(headers, body)
                receive = _replayed(body, receive)
        except HttpRefusalError as error:
            # Of a WebSocket, uvicorn sends the response in place of the handshake.
            await error.response(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _check_access(self, headers: Headers) -> None:
        try:
            self._access.check(headers.getlist)
        except AccessError as error:
            # `Basic` would make browsers ask for a password, and send it by themselves from then on.
            challenge = {"WWW-Authenticate": "Bearer"} if error.status == 401 else None
            raise HttpRefusalError(error.status, str(error), challenge) from error


def _check_site(scope: Scope, headers: Headers) -> None:
    """Refuse what a page of another web site makes a browser send; only a link to the page `/` may.

    Requests for images and scripts have no Origin. Browsers set this header themselves, no page can.
    """
    site = headers.getlist("sec-fetch-site")
    is_link = (
        scope["type"] == "http"
        and (scope["method"], scope["path"]) == ("GET", "/")
        and headers.getlist("sec-fetch-mode") == ["navigate"]
        and headers.getlist("sec-fetch-dest") == ["document"]
    )
    if site not in ([], ["same-origin"], ["none"]) and not is_link:
        expected = "same-origin, none, or a link to the page /"
        raise HttpRefusalError(403, mismatch("Sec-Fetch-Site", expected, ascii(", ".join(site)[:100])))


def _check_type(headers: Headers, body: bytes) -> None:
    declared = headers.get("content-type", "")
    if body and declared.split(";")[0].strip().lower() != "application/json":
        raise HttpRefusalError(
            415, mismatch("Content-Type", "application/json", ascii(declared[:100]) if declared else "none")
        )


async def _read_body(headers: Headers, receive: Receive) -> bytes:
    """Return the whole body. Raise `HttpRefusalError` if it is too long or takes too long."""
    too_long = HttpRefusalError(413, mismatch("body", f"at most {MAX_BODY_BYTES} bytes", "more"))
    length = headers.get("content-length", "0")
    if length.isdecimal() and int(length) > MAX_BODY_BYTES:
        raise too_long
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    raise HttpRefusalError(400, "the connection was closed before the body was complete")
                body += message.get("body", b"")
                if len(body) > MAX_BODY_BYTES:
                    raise too_long
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError as error:
        raise HttpRefusalError(
            408, mismatch("body", f"its end within {BODY_TIMEOUT_S:g} s", "a part")
        ) from error


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that returns `body` first, and then what follows it."""
    replayed = False

    async def receive_again() -> Message:
        nonlocal replayed
        if replayed:
            return await receive()
        replayed = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_again
