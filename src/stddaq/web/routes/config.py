"""`/api/config`: read and replace configurations."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Request, Response
from pydantic import BaseModel

from stddaq.config.meanings import described_schema
from stddaq.config.store import ConfigIdentityError, ConfigProtectedError
from stddaq.daemon.log import event
from stddaq.errors import ConfigError, StdDaqError
from stddaq.web.configurations import Configurations, call
from stddaq.web.responses import JsonResponse, described
from stddaq.web.routes.login import granted_of, who
from stddaq.web.routes.parameters import Detector, User


class ConfigChanged(BaseModel):
    """The effect of a new configuration."""

    message: str
    detector_name: str
    changed: list[str]
    """Keys whose value differs from the previous configuration."""
    picked_up_by: list[str]
    """Programs that apply the change while they run."""
    restarted: list[str]
    """Programs that `stddaq up` restarts, after the current run."""
    previous: str | None
    """File name of the previous version in the history directory; null if nothing changed."""


class ConfigCheck(BaseModel):
    """The effect that a new configuration would have; `mistakes` is empty if it can be set."""

    mistakes: list[str]
    changed: list[str] = []
    picked_up_by: list[str] = []
    restarted: list[str] = []


class ConfigVersion(BaseModel):
    """A previous version: who replaced it, when, and which keys the next version changed."""

    name: str
    time: datetime
    user: str
    changed: list[str] | None


_CONFIG_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": described_schema()}},
    }
}


def router(configurations: Configurations) -> APIRouter:
    """Return the routes of `configurations`."""
    routes = APIRouter(prefix="/api/config")

    @routes.get("/get", response_model=dict[str, Any], responses=described(404, 409, 504))
    async def get_config(request: Request, user: User, detector: Detector = None) -> Response:
        """Return the configuration file. `set` accepts its `ETag` as `If-Match`."""
        stored = await call(lambda: configurations.of(detector).read())
        event("%s reads the configuration of %s", who(request, user), stored.config.detector_name)
        return JsonResponse(stored.content, headers={"ETag": stored.etag})

    @routes.post("/set", responses=described(404, 409, 412, 415, 504), openapi_extra=_CONFIG_BODY)
    async def set_config(
        request: Request,
        response: Response,
        user: User,
        detector: Detector = None,
        if_match: Annotated[str | None, Header(max_length=100)] = None,
    ) -> ConfigChanged:
        """Replace the whole configuration file. An invalid configuration changes nothing."""
        text, name = await request.body(), who(request, user)
        # A login has one name, whatever the request says.
        owner = granted_of(request).user or user
        store = await call(lambda: configurations.of(detector))
        try:
            change = await call(lambda: store.replace(text, owner, if_match))
        except (StdDaqError, TimeoutError) as error:
            event("%s: configuration %s refused: %s", name, store.path, str(error)[:1000])
            raise
        changed = ", ".join(change.changed) or "nothing"
        event("%s: configuration %s set, changed: %s", name, store.path, changed)
        response.headers["ETag"] = change.etag
        return ConfigChanged(
            message="configuration set" if change.previous else "configuration unchanged",
            detector_name=change.config.detector_name,
            changed=change.changed,
            picked_up_by=change.picked_up_by,
            restarted=change.restarted,
            previous=change.previous,
        )

    @routes.post("/check", responses=described(404, 409, 415, 504), openapi_extra=_CONFIG_BODY)
    async def check_config(request: Request, detector: Detector = None) -> ConfigCheck:
        """Return what `set` would change, or why it would refuse. Nothing is written."""
        text = await request.body()
        store = await call(lambda: configurations.of(detector))
        try:
            change = await call(lambda: store.check(text))
        except ConfigError as error:
            return ConfigCheck(mistakes=list(error.mistakes))
        except (ConfigProtectedError, ConfigIdentityError) as error:
            return ConfigCheck(mistakes=[str(error)])
        return ConfigCheck(
            mistakes=[],
            changed=change.changed,
            picked_up_by=change.picked_up_by,
            restarted=change.restarted,
        )

    @routes.get("/history", responses=described(404, 409, 504))
    async def get_history(detector: Detector = None) -> list[ConfigVersion]:
        """Return the previous versions, the newest first."""
        versions = await call(lambda: configurations.of(detector).history())
        return [
            ConfigVersion(
                name=version.name, time=version.replaced_at, user=version.user, changed=version.changed
            )
            for version in versions
        ]

    @routes.get("/history/{name}", response_model=dict[str, Any], responses=described(404, 409, 504))
    async def get_version(name: Annotated[str, Path(max_length=300)], detector: Detector = None) -> Response:
        """Return a previous version. To return to it, `set` it."""
        return JsonResponse(await call(lambda: configurations.of(detector).version(name)))

    return routes
