"""Fixtures of drivers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.peers.basic_driver import BasicDriver
from support.processes.deployment import Deployment, Service


@dataclass
class RealDriver:
    """The driver of stddaq with two writers, and a simulator that publishes on trigger."""

    deployment: Deployment
    process: Service
    url: str
    writers: list[Service]

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def publish_continuously(self, rate: float = 500.0) -> Service:
        """Start a simulator."""
        return self.deployment.run(
            *(self.deployment.stddaq, "simulate", self.deployment.config_path, "--rate", rate), ready="ready"
        )


@pytest.fixture
def basic_driver() -> Iterator[BasicDriver]:
    """Return a driver that sends only status, count and reason."""
    with BasicDriver() as driver:
        yield driver


@pytest.fixture
def real_driver(deployment: Deployment) -> RealDriver:
    """Return the driver of stddaq, running with two writers."""
    process, url = deployment.start_driver()
    return RealDriver(deployment, process, url, deployment.start_writers())


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """An empty directory for the files of runs."""
    path = tmp_path / "files"
    path.mkdir()
    return path
