"""The driver of stddaq and its writers as real processes, without a source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from support.processes.deployment import Deployment, Service


@dataclass
class RealDriver:
    """A running driver and its writers."""

    deployment: Deployment
    process: Service
    url: str
    writers: list[Service]

    @classmethod
    def start(cls, deployment: Deployment) -> Self:
        """Start the driver and two writers."""
        process, url = deployment.start_driver()
        return cls(deployment, process, url, deployment.start_writers())

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def publish_continuously(self, rate: float = 200.0) -> Service:
        """Start a simulator. Its ring lasts for 5 s, in which a writer of a busy machine may stand still."""
        return self.deployment.run(
            *(self.deployment.stddaq, "simulate", self.deployment.config_path, "--rate", rate), ready="ready"
        )
