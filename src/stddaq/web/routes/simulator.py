"""`/api/test`: start, stop and trigger simulators."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel

from stddaq.client.simulator import SimulatorClient
from stddaq.daemon.log import event
from stddaq.text import mismatch, shown
from stddaq.web.configurations import Configurations, call
from stddaq.web.errors import UnknownDetectorError
from stddaq.web.responses import described
from stddaq.web.routes.login import who
from stddaq.web.routes.parameters import MAX_NAME_LENGTH, NAME, Detector
from stddaq.wire.simulator_messages import MAX_RATE_HZ

SIMULATOR_TIMEOUT_S = 2.0
Command = Literal["start", "stop", "trigger"]
Rate = Annotated[
    float | None,
    Query(ge=0, le=MAX_RATE_HZ, allow_inf_nan=False, description="images per second, 0: as fast as possible"),
]


class SimulatorStatus(BaseModel):
    """What a simulator does after the command; `rate` is in images per second."""

    detector_name: str
    free_running: bool
    rate: float
    next_id: int
    n_published: int


def router(configurations: Configurations) -> APIRouter:
    """Return the routes of the simulators of `configurations`."""
    routes = APIRouter(prefix="/api/test")

    @routes.post("/{detector_name}/simulator/{command}", responses=described(404, 409, 504))
    async def simulator(
        request: Request,
        detector_name: Annotated[str, Path(max_length=MAX_NAME_LENGTH, pattern=NAME)],
        command: Command,
        rate: Rate = None,
    ) -> SimulatorStatus:
        """Make the simulator of a detector publish at its rate, only when it is triggered, or one burst."""
        status = await call(lambda: _send(configurations, detector_name, command, rate))
        event("%s: simulator of %s: %s", who(request), detector_name, command)
        return status

    @routes.post("/{beamline}/{detector_type}/simulator/{command}", responses=described(404, 409, 504))
    async def simulator_of_type(
        request: Request,
        beamline: Annotated[str, Path(max_length=MAX_NAME_LENGTH, pattern=NAME, description="any name")],
        detector_type: Annotated[str, Path(max_length=MAX_NAME_LENGTH, pattern=NAME)],
        command: Command,
        detector: Detector = None,
        rate: Rate = None,
    ) -> SimulatorStatus:
        """Do the same by the path of std_daq, which has the type of the detector."""
        config = (await call(lambda: configurations.of(detector).read())).config
        if config.detector_type != detector_type:
            raise UnknownDetectorError(mismatch("detector_type", config.detector_type, shown(detector_type)))
        status = await call(lambda: _send(configurations, config.detector_name, command, rate))
        event("%s: simulator of %s (%s): %s", who(request), config.detector_name, beamline, command)
        return status

    return routes


def _send(
    configurations: Configurations, detector_name: str, command: Command, rate: float | None
) -> SimulatorStatus:
    configurations.of(detector_name)
    with SimulatorClient(detector_name, SIMULATOR_TIMEOUT_S) as simulator:
        if rate is not None:
            simulator.configure(rate=rate)
        if command == "trigger":
            state = simulator.trigger().state
        else:
            state = simulator.start() if command == "start" else simulator.stop()
    return SimulatorStatus(
        detector_name=detector_name,
        free_running=state.free_running,
        rate=state.rate,
        next_id=state.next_id,
        n_published=state.n_published,
    )
