"""The web application: puts the routes and the page together and maps errors to HTTP statuses.

A refused request is answered with its status and `{"detail": reason}`, or a list of reasons. Whatever may
block runs in threads and processes, so that a hanging file system does not stop the service.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import cast

from fastapi import FastAPI, Request, WebSocket
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

import stddaq
from stddaq.client.errors import (
    ConnectionLostError,
    DriverNotAllowedError,
    DriverUnreachableError,
    UnsupportedError,
)
from stddaq.client.simulator import SimulatorError
from stddaq.config.store import (
    ConfigIdentityError,
    ConfigOutdatedError,
    ConfigProtectedError,
    ConfigUnreadableError,
    ConfigVersionError,
    ConfigWriteError,
)
from stddaq.daemon.isolation import CrashError
from stddaq.daemon.log import logger
from stddaq.errors import ConfigError, FileLayoutError, OutputExistsError
from stddaq.files.opening import UnclosedFileError
from stddaq.validation import explain
from stddaq.web.configurations import Configurations
from stddaq.web.errors import (
    FileAccessError,
    ImageNotHeldError,
    PathForbiddenError,
    PathNotFoundError,
    PreviewAbsentError,
    QueueFullError,
    RequestInvalidError,
    TooOftenError,
    UnknownDetectorError,
)
from stddaq.web.guard import Guard
from stddaq.web.h5_files import H5Files
from stddaq.web.live.driver_feed import DriverFeed
from stddaq.web.memory import Memory
from stddaq.web.monitoring import Monitoring
from stddaq.web.responses import JsonResponse, described, refusal
from stddaq.web.rights import Rights
from stddaq.web.routes import (
    config,
    events,
    files,
    live,
    login,
    monitoring,
    page,
    run,
    runs,
    server_setup,
    simulator,
)
from stddaq.web.server_setup import ServerSetup
from stddaq.wire.default_addresses import DEFAULT_URL

Handler = Callable[[Request, Exception], Awaitable[JsonResponse]]

# The most specific class of an error counts. Errors that are not listed are defects: 500.
STATUSES: Mapping[type[Exception], int] = {
    RequestInvalidError: 422,
    UnknownDetectorError: 404,
    ConfigError: 422,
    ConfigUnreadableError: 409,
    ConfigVersionError: 404,
    ConfigOutdatedError: 412,
    ConfigProtectedError: 403,
    ConfigIdentityError: 400,
    ConfigWriteError: 409,
    PathForbiddenError: 403,
    PathNotFoundError: 404,
    FileAccessError: 409,
    FileLayoutError: 422,
    UnclosedFileError: 409,
    OutputExistsError: 409,
    CrashError: 422,
    QueueFullError: 503,
    ImageNotHeldError: 410,
    PreviewAbsentError: 503,
    TooOftenError: 429,
    SimulatorError: 409,
    UnsupportedError: 409,
    DriverUnreachableError: 502,
    DriverNotAllowedError: 502,
    ConnectionLostError: 502,
    TimeoutError: 504,
}


def create_app(
    configurations: Configurations,
    h5_files: H5Files,
    rights: Rights | None = None,
    monitored: Monitoring | None = None,
    driver: DriverFeed | None = None,
    memory: Memory | None = None,
) -> FastAPI:
    """Return the application, whose requests have the `rights`.

    `driver`: whose status the page shows; by default the one at the default address. `memory`: what the
    service has noted since its start.
    """
    app = FastAPI(
        title="stddaq-rest",
        summary="Configurations, HDF5 files, simulators and metrics of stddaq",
        version=stddaq.__version__,
        # FastAPI's documentation pages load their scripts from the internet.
        docs_url=None,
        redoc_url=None,
        default_response_class=JsonResponse,
        responses=described(400, 401, 403, 408, 413, 422),
    )
    rights = rights or Rights()
    app.add_middleware(Guard, rights=rights)
    for error, status in STATUSES.items():
        app.add_exception_handler(error, _refusing(status))
    app.add_exception_handler(HTTPException, _no_route)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Exception, _defect)
    app.include_router(login.router(rights))
    app.include_router(config.router(configurations))
    app.include_router(files.router(h5_files))
    app.include_router(simulator.router(configurations))
    monitored, memory = monitored or Monitoring(), memory or Memory()
    app.include_router(monitoring.router(monitored, memory.history))
    app.include_router(events.router(memory.events))
    app.include_router(runs.router(memory.runs))
    driver = driver or DriverFeed(DEFAULT_URL)
    setup = ServerSetup(h5_files, driver, monitored)
    app.include_router(server_setup.router(configurations, setup))
    app.include_router(live.router(configurations, driver, monitored.browsers))
    app.include_router(run.router(driver))
    app.include_router(page.router())
    app.add_api_websocket_route("/{path:path}", _no_websocket)
    return app


def _refusing(status: int) -> Handler:
    """Return a handler that answers an error with `status`."""

    async def refuse(_request: Request, error: Exception) -> JsonResponse:
        mistakes = list(error.mistakes) if isinstance(error, ConfigError) else str(error)
        return refusal(status, mistakes)

    return refuse


async def _no_route(_request: Request, error: Exception) -> JsonResponse:
    failure = cast("HTTPException", error)
    return refusal(failure.status_code, failure.detail, failure.headers)


async def _no_websocket(websocket: WebSocket) -> None:
    """Say that there is none; Starlette's own refusal has the status 403 and no reason."""
    await websocket.send_denial_response(refusal(404, "Not Found"))


async def _invalid(_request: Request, error: Exception) -> JsonResponse:
    # The first step of a location is "query", "path", "header" or "body".
    mistakes = cast("RequestValidationError", error).errors()
    return refusal(422, [explain(mistake, "body", skip=1) for mistake in mistakes])


async def _defect(request: Request, error: Exception) -> JsonResponse:
    logger.error("%s %s: unexpected %r", request.method, request.url.path, error)
    return refusal(500, "unexpected error of the service; see its log")
