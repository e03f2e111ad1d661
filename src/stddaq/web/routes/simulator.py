"""`/api/test`: start and stop simulators."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Path
from pydantic import BaseModel

from stddaq.client.simulator import SimulatorClient
from stddaq.daemon.log import event
from stddaq.text import mismatch, shown
from stddaq.web.configurations import Configurations, call
from stddaq.web.errors import UnknownDetectorError
from stddaq.web.responses import described
from stddaq.web.routes.parameters import MAX_NAME_LENGTH, NAME, Detector

SIMULATOR_TIMEOUT_S = 2.0
Command = Literal["start", "stop"]


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
        detector_name: Annotated[str, Path(max_length=MAX_NAME_LENGTH, pattern=NAME)], command: Command
    ) -> SimulatorStatus:
        """Make the simulator of a detector publish at its rate, or only when it is triggered."""
        status = await call(lambda: _send(configurations, detector_name, command))
        event("simulator of %s: %s", detector_name, command)
        return status

    @routes.post("/{beamline}/{detector_type}/simulator/{command}", responses=described(404, 409, 504))
    async def simulator_of_type(
        beamline: Annotated[str, Path(max_length=MAX_NAME_LENGTH, pattern=NAME, description="any name")],
        detector_type: Annotated[str, Path(max_length=MAX_NAME_LENGTH, pattern=NAME)],
        command: Command,
        detector: Detector = None,
    ) -> SimulatorStatus:
        """Do the same by the path of std_daq, which has the type of the detector."""
        config = (await call(lambda: configurations.of(detector).read())).config
        if config.detector_type != detector_type:
            raise UnknownDetectorError(mismatch("detector_type", config.detector_type, shown(detector_type)))
        status = await call(lambda: _send(configurations, config.detector_name, command))
        event("simulator of %s (%s): %s", config.detector_name, beamline, command)
        return status

    return routes


def _send(configurations: Configurations, detector_name: str, command: Command) -> SimulatorStatus:
    configurations.of(detector_name)
    with SimulatorClient(detector_name, SIMULATOR_TIMEOUT_S) as simulator:
        state = simulator.start() if command == "start" else simulator.stop()
    return SimulatorStatus(
        detector_name=detector_name,
        free_running=state.free_running,
        rate=state.rate,
        next_id=state.next_id,
        n_published=state.n_published,
    )
