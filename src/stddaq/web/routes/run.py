"""`/api/run`: the driver over HTTP. It takes the commands as those of any client, with its token."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from stddaq.client.errors import CommandRefusedError, DriverBusyError
from stddaq.client.status import DriverStatus
from stddaq.daemon.log import event
from stddaq.text import mismatch, shown
from stddaq.web.live.driver_feed import DriverFeed
from stddaq.web.logins import Login
from stddaq.web.responses import JsonResponse, described
from stddaq.web.routes.files import MAX_PATH_LENGTH
from stddaq.web.routes.login import granted_of, who
from stddaq.wire.run_defaults import DEFAULT_FILE_PREFIX, DEFAULT_N_IMAGE

KEEP_ALIVE_S = 15.0


class RunRequest(BaseModel):
    """A run to start. The fields are those of the driver's command `start`; the driver checks them."""

    model_config = ConfigDict(extra="forbid")

    path: Annotated[str, Field(max_length=MAX_PATH_LENGTH)]
    """Existing directory, absolute, as the driver sees it."""
    file_prefix: Annotated[str, Field(max_length=MAX_PATH_LENGTH)] = DEFAULT_FILE_PREFIX
    n_image: int = DEFAULT_N_IMAGE
    """Number of images; by default the run records until it is stopped."""
    start_id: int = 0
    overwrite: bool = False
    strict: bool = False
    end_on_restart: bool = False
    first_image_timeout: float | None = None


class RunCheck(BaseModel):
    """A run that could be started."""

    status: str
    """Of the driver: a run can be started only if it is `idle`."""
    needed_bytes: int | None
    """For all images; null if it is not known: without a number of images, or if they are compressed."""
    free_bytes: int
    """In the file system of `path`."""
    files: dict[str, Any]
    """The files that the run would make."""


class RunStatus(BaseModel):
    """What the driver does."""

    status: str
    run_id: str | None
    count: int | None
    reason: str | None
    files: dict[str, Any]


class RepairedFile(BaseModel):
    """A file of the last run after the repair."""

    path: str
    n_images: int | None
    n_cut: int
    """Incomplete images that were removed."""
    repaired: bool
    reason: str | None
    """Why it could not be repaired."""


class RunRefusal(BaseModel):
    """Why the driver refuses a run."""

    detail: str
    field: str | None
    """The field of the request that is not right."""
    error: str
    """The type of the refusal."""


_REFUSALS: dict[int | str, dict[str, Any]] = {
    **described(502, 504),
    409: {"model": RunRefusal, "description": "a run is in progress"},
    422: {"model": RunRefusal, "description": "the run cannot be started; `field` says why"},
}
# The field that a refusal is about, if its reason does not start with one.
_FIELDS = {"file_exists": "file_prefix", "disk_full": "n_image"}


def router(driver: DriverFeed) -> APIRouter:
    """Return the routes of the driver."""
    routes = APIRouter(prefix="/api/run")

    @routes.post("/check", responses=_REFUSALS)
    async def check(body: RunRequest) -> RunCheck:
        """Return whether the driver would start this run. Nothing changes."""
        try:
            async with driver.client() as client:
                raw = (await client.check(**_fields(body))).raw
        except CommandRefusedError as error:
            return _refused(error)
        return RunCheck(
            status=raw["status"],
            needed_bytes=raw.get("needed_bytes"),
            free_bytes=raw["free_bytes"],
            files=raw["planned_files"],
        )

    @routes.post("/start", responses=_REFUSALS)
    async def start(body: RunRequest, request: Request) -> RunStatus:
        """Start a run."""
        name, wanted = who(request), body.model_dump_json(exclude_defaults=True)
        try:
            async with driver.client() as client:
                status = await client.start(**_fields(body))
        except CommandRefusedError as error:
            event("%s: run %s refused: %s", name, wanted, error)
            return _refused(error)
        event("%s starts run %s: %s", name, status.run_id, wanted)
        return _status(status)

    @routes.post("/stop", responses=described(502, 504))
    async def stop(request: Request) -> RunStatus:
        """End the run, in any state."""
        async with driver.client() as client:
            status = await client.stop()
        event("%s stops run %s", who(request), status.run_id)
        return _status(status)

    @routes.post("/repair", responses=_REFUSALS)
    async def repair(request: Request) -> list[RepairedFile]:
        """Repair the files of the last run that a killed writer did not close."""
        event("%s repairs the files of the last run", who(request))
        try:
            async with driver.client() as client:
                repaired = await client.repair()
        except CommandRefusedError as error:
            return _refused(error)
        return [RepairedFile(**file) for file in repaired]

    @routes.get("/status", responses=described(502, 504))
    async def get_status() -> RunStatus:
        """Return what the driver does."""
        async with driver.client() as client:
            return _status(await client.status())

    @routes.get("/events", responses={200: {"content": {"text/event-stream": {}}}})
    async def events(request: Request) -> StreamingResponse:
        """Send every state of the driver as server-sent events, whose names are the states."""
        login = granted_of(request).login
        return StreamingResponse(_events(driver, login), media_type="text/event-stream")

    return routes


async def _events(driver: DriverFeed, login: Login | None) -> AsyncIterator[str]:
    with driver.watching() as watcher:
        statuses, state = watcher.statuses(), None
        following = asyncio.ensure_future(anext(statuses))
        ended = asyncio.ensure_future(login.wait_until_ended() if login else asyncio.Event().wait())
        try:
            while True:
                done, _ = await asyncio.wait(
                    [following, ended], timeout=KEEP_ALIVE_S, return_when=asyncio.FIRST_COMPLETED
                )
                if ended.done():
                    return
                if not done:
                    yield ": still connected\n\n"
                    continue
                status = following.result()
                following = asyncio.ensure_future(anext(statuses))
                if (status.status, status.run_id) != state:
                    state = status.status, status.run_id
                    yield f"event: {status.status}\ndata: {json.dumps(dict(status.raw))}\n\n"
        finally:
            following.cancel()
            ended.cancel()


def _fields(body: RunRequest) -> dict[str, Any]:
    # The client would make a relative path absolute in the directory of this service.
    if not body.path.startswith("/"):
        raise CommandRefusedError("invalid_field", mismatch("path", "an absolute path", shown(body.path)))
    return body.model_dump()


def _status(status: DriverStatus) -> RunStatus:
    return RunStatus(
        status=status.status,
        run_id=status.run_id,
        count=status.count,
        reason=status.reason,
        files=dict(status.files),
    )


def _refused(error: CommandRefusedError) -> Any:
    named = error.reason.partition(":")[0]
    field = _FIELDS.get(error.error_type, named if named in RunRequest.model_fields else None)
    refusal = RunRefusal(detail=error.reason, field=field, error=error.error_type)
    return JsonResponse(refusal.model_dump(), 409 if isinstance(error, DriverBusyError) else 422)
