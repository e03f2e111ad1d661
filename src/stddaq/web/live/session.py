"""One WebSocket of a browser: limits of what it sends, an orderly end, and the number of them."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from fastapi import WebSocket, WebSocketDisconnect
from starlette.requests import HTTPConnection

from stddaq.errors import StdDaqError
from stddaq.loopback import is_loopback
from stddaq.text import mismatch, shown
from stddaq.web.logins import Login
from stddaq.web.responses import JsonResponse, refusal
from stddaq.web.routes.login import address_of, granted_of
from stddaq.web.websocket_protocol import PARTS

MAX_BROWSERS = 64
# Without token or login, so that one computer cannot use up the connections of all.
MAX_ANONYMOUS_OF_ADDRESS = 8
MAX_MESSAGE_BYTES = 4096
MAX_MESSAGES_PER_S = 50
SEND_TIMEOUT_S = 10.0
# A page sees by that whether this service answers: it cannot see the pings of the protocol.
HEARTBEAT_S = 1.0
RECONNECT_S = 5


class SessionError(StdDaqError, ValueError):
    """A browser sent what it may not send, or takes too long. `code` names the reason."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Sessions:
    """Counts the WebSockets of browsers, and those of each address that are anonymous."""

    def __init__(self) -> None:
        self._n = 0
        self._n_anonymous: Counter[str] = Counter()

    async def run(self, websocket: WebSocket, serve: Callable[[Session], Awaitable[None]]) -> None:
        """Accept the WebSocket, and call `serve` until it is closed. Refuse it if there are too many."""
        source = anonymous_source(websocket)
        if response := self._refusal(source):
            await websocket.send_denial_response(response)
            return
        self._n += 1
        self._n_anonymous[source] += 1
        session = Session(websocket)
        try:
            await websocket.accept()
            await session.run(serve(session), granted_of(websocket).login)
        except (WebSocketDisconnect, OSError):
            pass  # The browser has left.
        finally:
            self._n -= 1
            self._n_anonymous[source] -= 1
            # Addresses are forgotten: a peer may have very many.
            if not self._n_anonymous[source]:
                del self._n_anonymous[source]

    def _refusal(self, source: str) -> JsonResponse | None:
        if self._n >= MAX_BROWSERS:
            reason = mismatch("browsers", f"at most {MAX_BROWSERS}", "another one", "try again later")
            return refusal(503, reason)
        if source and self._n_anonymous[source] >= MAX_ANONYMOUS_OF_ADDRESS:
            expected = f"at most {MAX_ANONYMOUS_OF_ADDRESS} without a login"
            return refusal(429, mismatch(f"browsers at {source}", expected, "another one", "log in"))
        return None


def anonymous_source(connection: HTTPConnection) -> str:
    """Return the address, or network, whose anonymous WebSockets are counted; empty if none are.

    Of IPv6 a network of 64 bits is counted as one address, because its users have all addresses of it.
    """
    host = address_of(connection)
    if not granted_of(connection).is_anonymous or is_loopback(host):
        return ""
    if ":" in host:
        return str(ipaddress.ip_network((host.partition("%")[0], 64), strict=False))
    return host


class Session:
    """An accepted WebSocket.

    Attributes:
        on_message: called with each JSON object of the browser; raises `SessionError`.
    """

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket
        self.on_message: Callable[[dict[str, Any]], None] = _refuse
        self._window_from, self._n_messages = 0.0, 0
        self._sent_at = time.monotonic()

    async def run(self, serve: Awaitable[None], login: Login | None = None) -> None:
        """Run `serve` while messages are received, until one of the two or the login ends."""
        tasks = [asyncio.ensure_future(task) for task in (serve, self._receive(), self._beat())]
        if login:
            tasks.append(asyncio.ensure_future(_end_of(login)))
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        error = next((result for result in results if isinstance(result, StdDaqError)), None)
        if error is not None:
            code = error.code if isinstance(error, SessionError) else "failed"
            with contextlib.suppress(SessionError):
                await self.send({"bye": str(error), "code": code, "again_s": RECONNECT_S})
            await self._websocket.close(1008)
            return
        for task in done:
            task.result()

    async def send(self, message: Sequence[bytes | memoryview] | dict[str, Any]) -> None:
        """Send the parts of an image, or a JSON object. Raise `SessionError` if the browser does not read."""
        try:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                if isinstance(message, dict):
                    await self._websocket.send_text(json.dumps(message))
                else:
                    await self._websocket.send({"type": "websocket.send", PARTS: message})
        except TimeoutError:
            raise SessionError("slow", "the browser does not read what it is sent") from None
        self._sent_at = time.monotonic()

    async def _beat(self) -> None:
        """Send a sign of life whenever there was nothing else to send."""
        while True:
            quiet = time.monotonic() - self._sent_at
            if quiet >= HEARTBEAT_S:
                await self.send({"alive": True})
                quiet = 0.0
            await asyncio.sleep(HEARTBEAT_S - quiet)

    async def _receive(self) -> None:
        while True:
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                return
            self._count()
            self.on_message(_parsed(message.get("text")))

    def _count(self) -> None:
        now = time.monotonic()
        if now - self._window_from >= 1:
            self._window_from, self._n_messages = now, 0
        self._n_messages += 1
        if self._n_messages > MAX_MESSAGES_PER_S:
            raise SessionError("too_many", mismatch("messages", f"{MAX_MESSAGES_PER_S} per second", "more"))


def _parsed(text: str | None) -> dict[str, Any]:
    try:
        content = json.loads(text or "")
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise SessionError("invalid_json", mismatch("message", "a JSON object", shown((text or "")[:100])))
    return content


async def _end_of(login: Login) -> None:
    """Wait for the end of a login, and raise `SessionError`."""
    await login.wait_until_ended()
    raise SessionError("logged_out", "the login has ended")


def _refuse(message: dict[str, Any]) -> None:
    raise SessionError("unknown_key", mismatch("message", "none", shown(message)))
