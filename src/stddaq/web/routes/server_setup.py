"""`/api/test/.../server-setup`: test whether a run could be recorded."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path
from pydantic import BaseModel

from stddaq.daemon.log import event
from stddaq.web.configurations import Configurations, call
from stddaq.web.responses import described
from stddaq.web.routes.parameters import MAX_NAME_LENGTH, NAME, Detector
from stddaq.web.server_setup import Finding, ServerSetup, failed


class SetupResult(BaseModel):
    """The result of all tests."""

    message: str
    detector_name: str
    passed: bool
    tests: list[Finding]


def router(configurations: Configurations, setup: ServerSetup) -> APIRouter:
    """Return the route that tests the server of `configurations`."""
    routes = APIRouter(prefix="/api/test")

    @routes.post("/{beamline}/server-setup", responses=described(404, 409, 504))
    async def test_server(
        beamline: Annotated[str, Path(max_length=MAX_NAME_LENGTH, pattern=NAME, description="any name")],
        detector: Detector = None,
    ) -> SetupResult:
        """Test services and driver, and whether files can be made below each root. Nothing is left."""
        name = (await call(lambda: configurations.of(detector).read())).config.detector_name
        findings = await setup.test(name)
        problems = failed(findings)
        message = f"failed: {', '.join(problems)}" if problems else "the server is ready for runs"
        event("server setup of %s (%s): %s", name, beamline, message)
        return SetupResult(message=message, detector_name=name, passed=not problems, tests=findings)

    return routes
