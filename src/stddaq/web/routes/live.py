"""`/api/live` and `/api/run`: images and the driver's status for the page.

The page changes nothing through these WebSockets but its own view.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

from fastapi import APIRouter, WebSocket
from pydantic import BaseModel

from stddaq.dataplane import endpoints
from stddaq.dataplane.local_peers import path_of
from stddaq.errors import StdDaqError
from stddaq.text import mismatch, shown
from stddaq.web.configurations import Configurations, call
from stddaq.web.live.browser_counts import BrowserCounts
from stddaq.web.live.driver_feed import DriverFeed
from stddaq.web.live.pace import ACKNOWLEDGE_TIMEOUT_S, Pace, Picture
from stddaq.web.live.previews import Previews, Shown, shown_stream, streams_of
from stddaq.web.live.session import Session, SessionError, Sessions
from stddaq.web.live.view import Choice
from stddaq.web.responses import described, refusal
from stddaq.web.rights import Right
from stddaq.web.routes import stills
from stddaq.web.routes.login import granted_of
from stddaq.wire.preview import head
from stddaq.wire.preview_requests import region_key

_LOOK_S = 1.0


class LiveSource(BaseModel):
    """A stream of a detector whose images the page can show."""

    detector: str
    source: str
    shape: tuple[int, int]
    dtype: str
    is_running: bool
    """Whether a preview service has bound its socket."""


def router(
    configurations: Configurations, driver: DriverFeed, browsers: Mapping[str, BrowserCounts]
) -> APIRouter:
    """Return the routes of `configurations` and the driver. `browsers`: their counts, by detector."""
    routes, previews = APIRouter(prefix="/api"), Previews()
    # A page has one of each.
    of_images, of_runs = Sessions(), Sessions()

    @routes.get("/live/sources", responses=described(504))
    async def sources() -> list[LiveSource]:
        """Return the streams whose images can be shown."""
        return await call(lambda: _sources(configurations))

    @routes.websocket("/live/ws")
    async def live(websocket: WebSocket) -> None:
        try:
            query = websocket.query_params
            config = (await call(lambda: configurations.of(query.get("detector")).read())).config
            shown = shown_stream(config, query.get("source", "image"))
        except (StdDaqError, TimeoutError) as error:
            await websocket.send_denial_response(refusal(404, str(error)))
            return
        counts = browsers[config.detector_name]
        images = LiveImages(previews, shown, config.image_shape, counts)
        with counts.connected():
            await of_images.run(websocket, images.serve)

    stills.add_routes(routes, configurations, previews)

    @routes.websocket("/run/ws")
    async def run(websocket: WebSocket) -> None:
        right = granted_of(websocket).right

        async def serve(session: Session) -> None:
            with driver.watching() as watcher:
                async for status in watcher.statuses():
                    await session.send(shown_to(right, status.raw))

        await of_runs.run(websocket, serve)

    return routes


_FOR_ALL = frozenset(
    {"status", "count", "run_id", "source", "n_image", "n_received", "writers"}
    | {"n_damaged", "n_overwritten", "n_failed", "n_skipped", "n_dropped", "n_restarts"}
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
            source=stream,
            shape=config.image_shape,
            dtype=config.dtype.name,
            is_running=path_of(endpoints.preview(name, stream)).exists(),
        )
        for name, config in ((name, store.read().config) for name, store in configurations.by_name().items())
        for stream in streams_of(config)
    ]


class LiveImages:
    """The images of one browser."""

    def __init__(
        self, previews: Previews, shown: Shown, shape: tuple[int, int], counts: BrowserCounts
    ) -> None:
        self._previews, self._shown = previews, shown
        self._choice = Choice(shape)
        self._pace, self._problem = Pace(counts=counts), ""
        self._news = asyncio.Event()

    async def serve(self, session: Session) -> None:
        """Send images at the browser's pace, until cancelled. Raise `SessionError`."""
        session.on_message = self._on_message
        previews, shown, choice = self._previews, self._shown, self._choice
        while True:
            regions = choice.regions
            with previews.measuring(shown, list(regions.values())) if regions else nullcontext():
                while regions == choice.regions:
                    view = choice.view
                    with previews.following(shown, view, self._on_picture):
                        while (view, regions) == (choice.view, choice.regions):
                            await self._send(session)

    async def _send(self, session: Session) -> None:
        """Send what is due, then wait for the next event."""
        now = time.monotonic()
        if self._pace.is_silent(now):
            raise SessionError("silent", f"no image was acknowledged within {ACKNOWLEDGE_TIMEOUT_S:g} s")
        if (picture := self._pace.take(now)) is not None:
            header = picture.header | {"regions": self._regions(picture)}
            await session.send((head(header), picture.payload))
        if self._problem:
            problem, self._problem = self._problem, ""
            await session.send({"error": problem, "code": "no_images"})
        try:
            async with asyncio.timeout(min(self._pace.due_in(now), _LOOK_S)):
                await self._news.wait()
        except TimeoutError:
            return
        self._news.clear()

    def _regions(self, picture: Picture) -> list[dict[str, Any]]:
        """Return the numbers of this browser's regions; those of the others are in the header, too."""
        found = picture.header.get("regions", {})
        keys = {number: region_key(region) for number, region in self._choice.regions.items()}
        return [{"id": number, **found[key]} for number, key in keys.items() if key in found]

    def _on_picture(self, picture: Picture) -> None:
        if "error" in picture.header:
            self._problem = str(picture.header["error"])
        else:
            self._pace.offer(picture)
        self._news.set()

    def _on_message(self, message: dict[str, Any]) -> None:
        """`{"ack": image, "busy_ms": ms}` after an image was drawn, `{"set": {...}}` for another view."""
        for key, value in message.items():
            if key == "ack":
                self._pace.acknowledge(value, time.monotonic(), _busy_s(message))
            elif key == "busy_ms" and "ack" in message:
                pass  # Taken with `ack`.
            elif key == "set":
                self._choice.change(value)
                self._pace.max_hz = self._choice.settings.max_hz
            else:
                raise SessionError("unknown_key", mismatch("message", "ack or set", shown(key)))
        self._news.set()


def _busy_s(message: Mapping[str, Any]) -> float:
    """Return the time that a browser took for an image. Raise `SessionError`."""
    busy_ms = message.get("busy_ms", 0)
    if isinstance(busy_ms, int | float) and not isinstance(busy_ms, bool) and 0 <= busy_ms < math.inf:
        return busy_ms / 1000
    raise SessionError("invalid_value", mismatch("busy_ms", "a number of at least 0", shown(busy_ms)))
