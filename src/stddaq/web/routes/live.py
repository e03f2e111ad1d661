"""`/api/live` and `/api/run`: images and the driver's status for the page.

The page changes nothing through these WebSockets but its own view.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any, Literal, get_args

from fastapi import APIRouter, WebSocket
from pydantic import BaseModel

from stddaq.dataplane import endpoints
from stddaq.dataplane.local_peers import path_of
from stddaq.errors import StdDaqError
from stddaq.text import mismatch, shown
from stddaq.web.configurations import Configurations, call
from stddaq.web.live.driver_feed import DriverFeed
from stddaq.web.live.pace import ACKNOWLEDGE_TIMEOUT_S, Pace, Picture
from stddaq.web.live.previews import Previews
from stddaq.web.live.session import Session, SessionError, Sessions
from stddaq.web.responses import described, refusal
from stddaq.web.rights import Right
from stddaq.web.routes.login import granted_of

ReducerName = Literal["mean", "max"]
_LOOK_S = 1.0


class LiveSource(BaseModel):
    """A detector whose images the page can show."""

    detector: str
    source: str
    shape: tuple[int, int]
    dtype: str
    is_running: bool
    """Whether a preview service has bound its socket."""


def router(configurations: Configurations, driver: DriverFeed) -> APIRouter:
    """Return the routes of `configurations` and the driver."""
    routes, previews, sessions = APIRouter(prefix="/api"), Previews(), Sessions()

    @routes.get("/live/sources", responses=described(504))
    async def sources() -> list[LiveSource]:
        """Return the detectors whose images can be shown."""
        return await call(lambda: _sources(configurations))

    @routes.websocket("/live/ws")
    async def live(websocket: WebSocket) -> None:
        try:
            name = websocket.query_params.get("detector")
            detector = (await call(lambda: configurations.of(name).read())).config.detector_name
        except (StdDaqError, TimeoutError) as error:
            await websocket.send_denial_response(refusal(404, str(error)))
            return
        await sessions.run(websocket, LiveImages(previews, detector).serve)

    @routes.websocket("/run/ws")
    async def run(websocket: WebSocket) -> None:
        right = granted_of(websocket).right

        async def serve(session: Session) -> None:
            with driver.watching() as watcher:
                async for status in watcher.statuses():
                    await session.send(shown_to(right, status.raw))

        await sessions.run(websocket, serve)

    return routes


_FOR_ALL = frozenset(
    {"status", "count", "run_id", "n_image", "n_received", "writers"}
    | {"n_damaged", "n_overwritten", "n_failed", "n_skipped", "n_restarts"}
)


def shown_to(right: Right, status: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a status that a browser may see: without the right to view, no paths."""
    if right >= Right.VIEW:
        return dict(status)
    return {key: value for key, value in status.items() if key in _FOR_ALL}


def _sources(configurations: Configurations) -> list[LiveSource]:
    return [
        LiveSource(
            detector=name,
            source="image",
            shape=store.read().config.image_shape,
            dtype=store.read().config.dtype.name,
            is_running=path_of(endpoints.preview(name)).exists(),
        )
        for name, store in configurations.by_name().items()
    ]


class LiveImages:
    """The images of one browser."""

    def __init__(self, previews: Previews, detector: str) -> None:
        self._previews, self._detector = previews, detector
        self._reducer: ReducerName = "mean"
        self._pace, self._problem = Pace(), ""
        self._news = asyncio.Event()

    async def serve(self, session: Session) -> None:
        """Send images at the browser's pace, until cancelled. Raise `SessionError`."""
        session.on_message = self._on_message
        while True:
            reducer = self._reducer
            with self._previews.following(self._detector, reducer, self._on_picture):
                while reducer == self._reducer:
                    await self._send(session)

    async def _send(self, session: Session) -> None:
        """Send what is due, then wait for the next event."""
        now = time.monotonic()
        if self._pace.is_silent(now):
            raise SessionError("silent", f"no image was acknowledged within {ACKNOWLEDGE_TIMEOUT_S:g} s")
        if (message := self._pace.take(now)) is not None:
            await session.send(message)
        if self._problem:
            problem, self._problem = self._problem, ""
            await session.send({"error": problem, "code": "no_images"})
        try:
            async with asyncio.timeout(min(self._pace.due_in(now), _LOOK_S)):
                await self._news.wait()
        except TimeoutError:
            return
        self._news.clear()

    def _on_picture(self, picture: Picture) -> None:
        if "error" in picture.header:
            self._problem = str(picture.header["error"])
        else:
            self._pace.offer(picture)
        self._news.set()

    def _on_message(self, message: dict[str, Any]) -> None:
        """`{"ack": image}` after an image was drawn, `{"set": {...}}` for another view."""
        for key, value in message.items():
            if key == "ack":
                self._pace.acknowledge(value, time.monotonic())
            elif key == "set" and isinstance(value, dict):
                for name, setting in value.items():
                    self._set(name, setting)
            else:
                raise SessionError("unknown_key", mismatch("message", "ack or set", shown(key)))
        self._news.set()

    def _set(self, name: str, value: Any) -> None:
        if name == "reducer":
            if value not in get_args(ReducerName):
                raise SessionError("invalid_value", mismatch("reducer", "mean or max", shown(value)))
            self._reducer = value
        elif name == "max_hz":
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0.1 <= value <= 100:
                raise SessionError("invalid_value", mismatch("max_hz", "0.1 to 100", shown(value)))
            self._pace.max_hz = float(value)
        else:
            raise SessionError("unknown_key", mismatch("set", "reducer or max_hz", shown(name)))
