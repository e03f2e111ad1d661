"""The metrics page of `stddaq up`, which says which services it keeps running."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from stddaq.cli.supervisor.child import Child
from stddaq.daemon import metrics
from stddaq.daemon.metrics import Registry
from stddaq.daemon.metrics_page import MetricsPage

NAME = "up"
HEARTBEAT_S = 0.5


class SupervisorPage:
    """The page of the supervisor of a detector's services."""

    def __init__(self, detector_name: str, config_etag: str) -> None:
        self._detector_name, self._config_etag = detector_name, config_etag
        self._page: MetricsPage | None = None
        self._n_changes = -1

    def show(self, children: Sequence[Child]) -> None:
        """Publish these services from now on."""
        self.close()
        self._n_changes += 1
        registry = Registry(self._detector_name, NAME)
        registry.add(metrics.CONFIGURATION_CHANGES, lambda: self._n_changes)
        for child in children:
            _add(registry, child)
        self._page = MetricsPage(registry, HEARTBEAT_S, self._config_etag)
        self._page.publish_if_due()

    async def publish(self) -> None:
        """Keep the page up to date. Does not return."""
        while True:
            if self._page:
                self._page.publish_if_due()
            await asyncio.sleep(HEARTBEAT_S)

    def close(self) -> None:
        """Remove the page."""
        if self._page:
            self._page.remove()
            self._page.close()
            self._page = None


def _add(registry: Registry, child: Child) -> None:
    spec = child.spec
    if spec.program and spec.instance_id is not None:
        labels = {"of_service": spec.program, "of_id": spec.instance_id}
        registry.add(metrics.WANTED, lambda: not child.is_finished, **labels)
        registry.add(metrics.SERVICE_RESTARTS, lambda: child.restarts.n_restarts, **labels)
