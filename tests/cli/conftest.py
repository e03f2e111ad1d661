"""Fixtures of `stddaq up`, a whole deployment in one command."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support.processes.deployment import Deployment, Service, free_port


class Up:
    """A running `stddaq up`."""

    def __init__(self, deployment: Deployment, *args: object) -> None:
        self.deployment = deployment
        self.port = free_port()
        self.url = f"ws://127.0.0.1:{self.port}"
        self.process: Service = deployment.run(
            *(deployment.stddaq, "up", deployment.config_path, "--port", self.port, *args),
            ready="all services ready",
        )

    def record(self, *args: object) -> Service:
        """Start `stddaq record`."""
        return self.deployment.run(self.deployment.stddaq, "record", *args, "--url", self.url)


class Services:
    """The services of `stddaq up -m` without it: as forks, they are ready in a tenth of the time."""

    def __init__(self, deployment: Deployment, *simulate: object) -> None:
        """`simulate` are options of `stddaq simulate`."""
        self.deployment = deployment
        _, self.url = deployment.start_driver("-m")
        deployment.start_writers()
        deployment.start("std_det_meta_writer_gf")
        deployment.run(deployment.stddaq, "simulate", deployment.config_path, *simulate, ready="ready")

    def record(self, *args: object) -> Service:
        """Start `stddaq record`."""
        return self.deployment.run(self.deployment.stddaq, "record", *args, "--url", self.url)


StartServices = Callable[..., Services]


@pytest.fixture
def services(deployment: Deployment) -> StartServices:
    """Return a function that starts the services of a deployment, with options of `stddaq simulate`."""
    return lambda *simulate: Services(deployment, *simulate)


@pytest.fixture
def up(deployment: Deployment) -> Callable[..., Up]:
    """Return a function that starts `stddaq up` with further options and waits until it is ready."""
    return lambda *args: Up(deployment, *args)
