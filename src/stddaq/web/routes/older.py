"""The older REST, for clients such as `std-daq-client`: `/writer`, `/daq` and `/simulation`; `--compat`.

Every answer has status 200 and says itself whether the request was carried out.
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stddaq.client.simulator import SimulatorClient
from stddaq.config.model import KEYS
from stddaq.daemon.log import event
from stddaq.errors import StdDaqError
from stddaq.validation import explain
from stddaq.web.configurations import Configurations, call
from stddaq.web.monitoring import Monitoring, Snapshot
from stddaq.web.older_writer import OlderRestError, OlderWriter
from stddaq.web.routes.files import MAX_PATH_LENGTH
from stddaq.web.routes.login import who
from stddaq.web.routes.simulator import SIMULATOR_TIMEOUT_S

# `stddaq up` needs two seconds to see a change; its services are then silent for a moment.
_RESTART_S = 4.0
_USER = "compat"
_MAX_LOGS = 1000


class WriteRequest(BaseModel):
    """A run, whose file is named by the client."""

    model_config = ConfigDict(extra="ignore")

    n_images: Annotated[int, Field(ge=1)]
    output_file: Annotated[str, Field(max_length=MAX_PATH_LENGTH)]
    run_id: Annotated[str, Field(max_length=200)] | int | None = None


Answer = dict[str, Any]


async def _answered(key: str, work: Callable[[], Awaitable[Any]]) -> Answer:
    try:
        return {"status": "ok", "message": "", key: await work()}
    except (StdDaqError, OSError, TimeoutError) as error:
        return {"status": "error", "message": str(error)}


def _checked(body: dict[str, Any]) -> WriteRequest:
    try:
        return WriteRequest.model_validate(body)
    except ValidationError as error:
        raise OlderRestError("; ".join(explain(mistake, "body") for mistake in error.errors())) from error


def router(configurations: Configurations, writer: OlderWriter, monitoring: Monitoring) -> APIRouter:
    """Return the routes of the only configuration."""
    routes = APIRouter()
    _add_writer_routes(routes, configurations, writer)
    _add_daq_routes(routes, configurations, writer, monitoring)
    _add_simulation_routes(routes, configurations)
    return routes


def _add_writer_routes(routes: APIRouter, configurations: Configurations, writer: OlderWriter) -> None:
    async def start(request: Request, given: dict[str, Any]) -> None:
        body = _checked(given)
        content = (await call(lambda: configurations.of(None).read())).content
        uid = content.get("writer_user_id", 0)
        await writer.start(body.output_file, body.n_images, body.run_id, uid if isinstance(uid, int) else 0)
        event("%s starts a run of %d images, %s", who(request), body.n_images, body.output_file)

    @routes.get("/writer/status")
    async def status() -> Answer:
        """Return the state of the writer and its last acquisition."""
        return await _answered("writer", writer.status)

    @routes.post("/writer/write_async")
    async def write_async(body: dict[str, Any], request: Request) -> Answer:
        """Start a run."""

        async def work() -> Answer:
            await start(request, body)
            return writer.last()

        return await _answered("writer", work)

    @routes.post("/writer/write_sync")
    async def write_sync(body: dict[str, Any], request: Request) -> Answer:
        """Record a run, at most for a minute."""

        async def work() -> Answer:
            await start(request, body)
            await writer.wait()
            return writer.last()

        return await _answered("writer", work)

    @routes.post("/writer/stop")
    async def stop(request: Request) -> Answer:
        """End the run, if there is one."""

        async def work() -> Answer:
            await writer.stop()
            event("%s stops the writer", who(request))
            return writer.last()

        return await _answered("writer", work)


def _add_daq_routes(
    routes: APIRouter, configurations: Configurations, writer: OlderWriter, monitoring: Monitoring
) -> None:
    changed_at = float("-inf")

    @routes.get("/daq/config")
    async def get_config() -> Answer:
        """Return the configuration."""

        async def work() -> Any:
            return (await call(lambda: configurations.of(None).read())).content

        return await _answered("config", work)

    @routes.post("/daq/config")
    async def set_config(body: dict[str, Any], request: Request) -> Answer:
        """Change the given keys of the configuration."""

        async def work() -> Any:
            nonlocal changed_at
            store = await call(lambda: configurations.of(None))
            stored = await call(store.read)
            known = stored.content.keys() | set(KEYS)
            changed = stored.content | {key: value for key, value in body.items() if key in known}
            text = json.dumps(changed, indent=2).encode()
            change = await call(lambda: store.replace(text, _USER, stored.etag))
            event("%s: configuration %s set, changed: %s", who(request), store.path, change.changed)
            changed_at = time.monotonic() if change.changed else changed_at
            return changed

        return await _answered("config", work)

    @routes.get("/daq/stats")
    async def stats() -> Answer:
        """Return images and bytes per second of source and writers."""

        async def work() -> Any:
            config = (await call(lambda: configurations.of(None).read())).config
            snapshot = await call(monitoring.snapshot)
            received = _rate(snapshot, "std_det_driver", "stddaq_images_received_total")
            written = _rate(snapshot, "std_det_writer", "stddaq_images_written_total")
            return {
                "detector": _throughput(received, config.image_bytes),
                "writer": _throughput(written, config.image_bytes),
            }

        return await _answered("stats", work)

    @routes.get("/daq/logs/{n_logs}")
    async def logs(n_logs: Annotated[int, Path(ge=0, le=_MAX_LOGS)]) -> Answer:
        """Return the last acquisitions that have made a file, newest first."""

        async def work() -> Any:
            return [acquisition.as_json() for acquisition in list(writer.finished)[:n_logs]]

        return await _answered("logs", work)

    @routes.get("/daq/deployment")
    async def deployment() -> Answer:
        """Return whether all services work with the configuration."""

        async def work() -> Any:
            etag = (await call(lambda: configurations.of(None).read())).etag
            services = (await call(monitoring.snapshot)).services
            failing = [service.name for service in services if not service.is_well]
            is_restarting = time.monotonic() - changed_at < _RESTART_S
            status = "RUNNING" if is_restarting else "ERROR" if failing else "SUCCESS"
            message = f"do not work: {', '.join(failing)}" if failing else ""
            stats = {"start_time": None, "stop_time": None}
            return {"config_id": etag, "status": status, "message": message, "servers": {}, "stats": stats}

        return await _answered("deployment", work)


def _rate(snapshot: Snapshot, service: str, metric: str) -> float:
    return sum(
        rate
        for key, rates in snapshot.rates.items()
        if key.service == service
        for name, rate in rates.items()
        if name.startswith(metric)
    )


def _throughput(images_per_s: float, image_bytes: int) -> dict[str, float]:
    return {"bytes_per_second": images_per_s * image_bytes, "images_per_second": images_per_s}


def _add_simulation_routes(routes: APIRouter, configurations: Configurations) -> None:
    def simulator(command: Callable[[SimulatorClient], Any]) -> Any:
        name = configurations.of(None).read().config.detector_name
        with SimulatorClient(name, SIMULATOR_TIMEOUT_S) as client:
            state = command(client)
        shown_state = "STREAMING" if state.free_running else "READY"
        return {"status": shown_state, "stats": {"n_generated_images": state.n_published}}

    @routes.get("/simulation/status")
    async def status() -> Answer:
        """Return what the simulator does."""
        return await _answered("simulator", lambda: call(lambda: simulator(SimulatorClient.status)))

    @routes.post("/simulation/start")
    async def start() -> Answer:
        """Let the simulator publish at its rate."""
        return await _answered("simulator", lambda: call(lambda: simulator(SimulatorClient.start)))

    @routes.post("/simulation/stop")
    async def stop() -> Answer:
        """Let the simulator publish only when it is triggered."""
        return await _answered("simulator", lambda: call(lambda: simulator(SimulatorClient.stop)))
