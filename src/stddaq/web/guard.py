"""What every request must pass before it is looked at: its token, its origin, the length of its body.

Because of browsers a service on the loopback interface is not private by itself: any web site can let them
send requests there. Bodies must therefore be said to be JSON, which browsers do not send elsewhere unasked,
and requests that name another site as their origin, or another host, are refused.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stddaq.web.loopback import is_loopback

MAX_BODY_BYTES = 2**20
BODY_TIMEOUT_S = 10.0


class JsonAnswer(Response):
    """JSON in ASCII: what clients send us may hold half of a surrogate pair, which UTF-8 cannot."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


class _Refused(Exception):  # noqa: N818 - the name says what happened
    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.answer = JsonAnswer({"detail": detail}, status, headers)


class Guard:
    """ASGI middleware. With `token` every request has to carry it; without, requests have to be local."""

    def __init__(self, app: ASGIApp, token: str | None = None) -> None:
        self._app, self._token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            headers = Headers(scope=scope)
            self._check_origin(headers)
            self._check_token(headers)
            body = await _body(headers, receive)
            if body and headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
                raise _Refused(
                    415,
                    f"Content-Type: found {headers.get('content-type', 'none')[:100]!r}, "
                    "allowed is application/json",
                )
        except _Refused as refused:
            await refused.answer(scope, receive, send)
            return
        await self._app(scope, _once(body, receive), send)

    def _check_origin(self, headers: Headers) -> None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            raise _Refused(403, f"Origin: found {origin[:200]!r}, allowed is this service's own")
        if self._token is None and not is_loopback(_name_of(host)):
            raise _Refused(403, f"Host: found {host[:200]!r}, allowed are localhost and its addresses")

    def _check_token(self, headers: Headers) -> None:
        if self._token is None:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        is_right = hmac.compare_digest(given.strip().encode(), self._token.encode())
        if scheme.lower() != "bearer" or not is_right:
            raise _Refused(401, "allowed is Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"})


def _name_of(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


async def _body(headers: Headers, receive: Receive) -> bytes:
    """The whole body. Raises `_Refused` when it is too long, or takes too long."""
    too_long = _Refused(413, f"the body is too long, allowed are {MAX_BODY_BYTES} bytes")
    length = headers.get("content-length", "0")
    if length.isdecimal() and int(length) > MAX_BODY_BYTES:
        raise too_long
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    raise _Refused(400, "the connection was closed before the body was complete")
                body += message.get("body", b"")
                if len(body) > MAX_BODY_BYTES:
                    raise too_long
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError as error:
        raise _Refused(408, f"the body did not come within {BODY_TIMEOUT_S:g} s") from error


def _once(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives `body` first, and then what comes after it."""
    given = False

    async def receive_again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_again
