"""The checks that every request must pass: its right, its origin, the type and length of its body.

WebSocket handshakes are checked like requests, before they are accepted.

What changes something must be declared as JSON and, if a browser sends it, carry the header `X-Stddaq: 1`.
Browsers do not send either to another site without asking it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stddaq.daemon.access import EXPECTED_TOKEN, AccessError
from stddaq.errors import StdDaqError
from stddaq.text import mismatch
from stddaq.web.responses import refusal
from stddaq.web.rights import Granted, Right, Rights, needed
from stddaq.web.routes.login import cookie_of

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
    """ASGI middleware: HTTP requests and WebSocket handshakes pass if they have the right.

    Routes find it as `granted` in the state of the request.
    """

    def __init__(self, app: ASGIApp, rights: Rights) -> None:
        self._app, self._rights = app, rights

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            granted = self._granted(scope, headers)
            _check_site(scope, headers)
            _check_right(scope, granted)
            if scope["type"] == "http":
                is_change = scope["method"] not in ("GET", "HEAD")
                if is_change:
                    _check_mark(headers)
                body = await _read_body(headers, receive)
                if body or (is_change and _is_of_browser(headers)):
                    _check_type(headers)
                receive = _replayed(body, receive)
        except HttpRefusalError as error:
            # Of a WebSocket, uvicorn sends the response in place of the handshake.
            await error.response(scope, receive, send)
            return
        scope.setdefault("state", {})["granted"] = granted
        if scope.get("method") == "HEAD":
            # The server leaves the body out; it keeps the scope that it has made.
            scope = {**scope, "method": "GET"}
        await self._app(scope, receive, send)

    def _granted(self, scope: Scope, headers: Headers) -> Granted:
        try:
            return self._rights.of(headers.getlist, cookie_of(HTTPConnection(scope)))
        except AccessError as error:
            raise _refused_access(error.status, str(error)) from error


def _check_right(scope: Scope, granted: Granted) -> None:
    right = needed(scope["path"], scope.get("method", "GET"))
    if granted.right >= right:
        return
    if granted.right <= Right.LOOK:
        raise _refused_access(401, mismatch("Authorization", EXPECTED_TOKEN, "none", "or log in on the page"))
    expected = "a service with --allow-control, or a login with its token"
    raise HttpRefusalError(403, mismatch(f"{scope['method']} {scope['path']}", expected, "the right to view"))


def _refused_access(status: int, reason: str) -> HttpRefusalError:
    # `Basic` would make browsers ask for a password, and send it by themselves from then on.
    return HttpRefusalError(status, reason, {"WWW-Authenticate": "Bearer"} if status == 401 else None)


def _is_of_browser(headers: Headers) -> bool:
    return any(name in headers for name in ("origin", "sec-fetch-site", "cookie"))


def _check_mark(headers: Headers) -> None:
    if _is_of_browser(headers) and headers.getlist("x-stddaq") != ["1"]:
        raise HttpRefusalError(403, mismatch("X-Stddaq", "1, from a browser", "another value or none"))


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


def _check_type(headers: Headers) -> None:
    declared = headers.get("content-type", "")
    if declared.split(";")[0].strip().lower() != "application/json":
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
