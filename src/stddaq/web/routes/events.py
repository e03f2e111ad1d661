"""`/api/events`: what the services have printed."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query, WebSocket
from pydantic import BaseModel

from stddaq.web.live.events import KEPT, Events, KeptEvent
from stddaq.web.live.session import Session, Sessions
from stddaq.wire.events import Level

PERIOD_S = 0.2


class ServiceEvent(BaseModel):
    """A line that a service of `stddaq up` has printed."""

    seq: int
    """Number of the event since the start of this service."""
    time: str
    """ISO 8601, with the zone."""
    detector: str
    service: str
    id: str
    level: Level
    text: str


class EventList(BaseModel):
    """Events, the oldest first; `dropped` of all did not arrive here."""

    events: list[ServiceEvent]
    dropped: int


def router(events: Events) -> APIRouter:
    """Return the routes of `events`."""
    routes, sessions = APIRouter(prefix="/api/events"), Sessions()

    @routes.get("")
    async def get_events(
        since: Annotated[int, Query(ge=0)] = 0,
        level: Level = "debug",
        limit: Annotated[int, Query(ge=1, le=KEPT)] = KEPT,
    ) -> EventList:
        """Return the newest events after `since` that are at least as severe as `level`."""
        found = [_shown(event) for event in events.since(since, level, limit)]
        return EventList(events=found, dropped=events.n_dropped)

    @routes.websocket("/ws")
    async def follow(websocket: WebSocket, since: int = 0) -> None:
        async def serve(session: Session) -> None:
            with events.watching(since) as watcher:
                while True:
                    await watcher.arrived.wait()
                    await session.send(_message(watcher.take(), events.n_dropped + watcher.n_dropped))
                    await asyncio.sleep(PERIOD_S)

        await sessions.run(websocket, serve)

    return routes


def _message(events: list[KeptEvent], n_dropped: int) -> dict[str, Any]:
    return EventList(events=[_shown(event) for event in events], dropped=n_dropped).model_dump()


def _shown(kept: KeptEvent) -> ServiceEvent:
    event = kept.event
    return ServiceEvent(
        seq=kept.seq,
        time=event.time,
        detector=kept.detector,
        service=event.service,
        id=event.id,
        level=event.level,
        text=event.text,
    )
