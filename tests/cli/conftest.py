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


@pytest.fixture
def up(deployment: Deployment) -> Callable[..., Up]:
    """Return a function that starts `stddaq up` with further options and waits until it is ready."""
    return lambda *args: Up(deployment, *args)
