"""`/metrics`, `/health` and `/api/health`: what the services publish."""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel

from stddaq.daemon.health import ServiceHealth, State
from stddaq.web.configurations import call
from stddaq.web.history import History
from stddaq.web.machine import DiskStatus, RingStatus, disks_of, rings_of
from stddaq.web.metrics_text import CONTENT_TYPE
from stddaq.web.monitoring import Monitoring, ServiceKey, Snapshot
from stddaq.web.responses import JsonResponse, described
from stddaq.web.rights import Right
from stddaq.web.routes.login import granted_of


class Health(BaseModel):
    """Whether all services that should run work; `services` lists the others."""

    status: Literal["ok", "failing"]
    services: list[str] = []


class Alive(BaseModel):
    """The answer of a service that answers."""

    status: Literal["ok"] = "ok"


class ServiceStatus(BaseModel):
    """One service.

    `age_s` is the time since its main loop wrote its page, `started` seconds since 1970; `rates` are per
    second.
    """

    detector: str
    service: str
    id: str
    state: State
    wanted: bool
    pid: int | None
    version: str | None
    config_etag: str | None
    """Of the configuration file that the service has read at its start, as `ETag` of `/api/config/get`."""
    age_s: float | None
    started: float | None
    restarts: int | None
    losses: dict[str, float]
    """Sums of those counters that count losses; ids that a filter skips are none."""
    counters: dict[str, float]
    gauges: dict[str, float]
    rates: dict[str, float]


class HealthTable(BaseModel):
    """All services, working or not; `now` in seconds since 1970. Who may only look gets no disks and no
    address of Grafana.
    """

    now: float
    services: list[ServiceStatus]
    rings: list[RingStatus]
    disks: list[DiskStatus]
    grafana_url: str | None
    """As given to this service."""


class RatesOverTime(BaseModel):
    """The rates of counters per second; null where they are not known. `t` in seconds since 1970.

    Counters that have not changed are left out.
    """

    t: list[float]
    series: dict[str, list[float | None]]


def router(monitoring: Monitoring, history: History) -> APIRouter:
    """Return the routes that read `monitoring` and `history`."""
    routes = APIRouter()

    @routes.get("/metrics", response_class=Response, responses=_TEXT | described(504))
    async def get_metrics() -> Response:
        """Return all metrics in the text format of Prometheus."""
        snapshot = await call(monitoring.snapshot)
        return Response(snapshot.text, media_type=CONTENT_TYPE)

    @routes.get("/health", responses={503: {"model": Health, "description": "a service does not work"}})
    async def get_health() -> Health:
        """Return whether all services that should run work; the status is 503 if one does not."""
        snapshot = await call(monitoring.snapshot)
        failing = [service for service in snapshot.services if not service.is_well]
        if not failing:
            return Health(status="ok")
        names = [f"{service.detector}: {service.name}: {service.state}" for service in failing]
        return JsonResponse(Health(status="failing", services=names).model_dump(), 503)  # pyright: ignore[reportReturnType]

    @routes.get("/health/live")
    async def get_live() -> Alive:
        """Return that this service answers."""
        return Alive()

    @routes.get("/api/health", responses=described(504))
    async def get_table(request: Request) -> HealthTable:
        """Return the state of every service with its counters and rates, ring buffers and disks."""
        snapshot = await call(monitoring.snapshot)
        rows = [_status(service, snapshot) for service in snapshot.services]
        is_viewer = granted_of(request).right >= Right.VIEW
        return HealthTable(
            now=time.time(),
            services=rows,
            rings=rings_of(snapshot.samples),
            disks=disks_of(snapshot.samples, monitoring.roots if is_viewer else []),
            grafana_url=monitoring.grafana_url if is_viewer else None,
        )

    @routes.get("/api/history", responses=described(504))
    async def get_history(
        metrics: Annotated[str, Query(max_length=2000, description="names, separated by commas")] = "",
        since: Annotated[float, Query(ge=0)] = 0.0,
        by: Literal["second", "minute"] = "second",
    ) -> RatesOverTime:
        """Return rates of the last hour by the second, or of the last day by the minute."""
        names = [name for name in metrics.split(",") if name]
        found = await call(lambda: history.since(since, names, by_minute=by == "minute"))
        return RatesOverTime(**found)

    return routes


_TEXT: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}


def _status(service: ServiceHealth, snapshot: Snapshot) -> ServiceStatus:
    page = service.page
    key = page and ServiceKey(service.detector, service.service, service.instance_id, page.started_s)
    return ServiceStatus(
        detector=service.detector,
        service=service.service,
        id=service.instance_id,
        state=service.state,
        wanted=service.is_wanted,
        pid=page.pid if page else None,
        version=page.version if page else None,
        config_etag=page.config_etag if page else None,
        age_s=page.age_s if page else None,
        started=page.started_s if page else None,
        restarts=service.n_restarts,
        losses=service.losses,
        counters=snapshot.counters.get(key, {}) if key else {},
        gauges=snapshot.gauges.get(key, {}) if key else {},
        rates=snapshot.rates.get(key, {}) if key else {},
    )
