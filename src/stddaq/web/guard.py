"""The checks that every request must pass: its token, its origin, the type and length of its body.

The loopback interface alone does not keep a service private, because any web site can make a browser send
requests to it. So bodies must be declared as JSON, which browsers do not send to another site without
asking it, and requests with another origin or host are refused.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stddaq.errors import StdDaqError
from stddaq.text import mismatch
from stddaq.web.loopback import is_loopback
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
    """ASGI middleware. With `token` every request must carry it; without, requests must be local."""

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
            body = await _read_body(headers, receive)
            _check_type(headers, body)
        except HttpRefusalError as error:
            await error.response(scope, receive, send)
            return
        await self._app(scope, _replayed(body, receive), send)

    def _check_origin(self, headers: Headers) -> None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if origin is not None and _netloc(origin) != host:
            raise HttpRefusalError(403, mismatch("Origin", "that of this service", ascii(origin[:200])))
        if self._token is None and not is_loopback(_name_of(host)):
            raise HttpRefusalError(403, mismatch("Host", "localhost or its address", ascii(host[:200])))

    def _check_token(self, headers: Headers) -> None:
        if self._token is None:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        is_right = hmac.compare_digest(given.strip().encode(), self._token.encode())
        if scheme.lower() != "bearer" or not is_right:
            raise HttpRefusalError(
                401,
                mismatch("Authorization", "Bearer and the token of this service", "another value or none"),
                {"WWW-Authenticate": "Bearer"},
            )


def _netloc(origin: str) -> str | None:
    """Return the host and port of an origin; None if it is malformed."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


def _name_of(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


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
