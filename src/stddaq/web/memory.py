"""What the service notes while it runs: events of the services, recent runs, rates over time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from stddaq.daemon.log import logger
from stddaq.daemon.tasks import start_lasting_task
from stddaq.web.configurations import call
from stddaq.web.history import History
from stddaq.web.live.driver_feed import DriverFeed
from stddaq.web.live.events import Events
from stddaq.web.monitoring import Monitoring, Snapshot
from stddaq.web.runs import Runs, follow_runs

HISTORY_PERIOD_S = 1.0


@dataclass(frozen=True, slots=True)
class Memory:
    """The last events, runs and rates."""

    events: Events = field(default_factory=Events)
    runs: Runs = field(default_factory=Runs)
    history: History = field(default_factory=History)

    @asynccontextmanager
    async def noting(
        self, detectors: Sequence[str], driver: DriverFeed, monitoring: Monitoring
    ) -> AsyncIterator[None]:
        """Note what happens, until the end of the context."""
        tasks = [
            start_lasting_task(follow_runs(self.runs, driver)),
            start_lasting_task(self._note_rates(monitoring)),
            *(start_lasting_task(self.events.follow(detector)) for detector in detectors),
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _note_rates(self, monitoring: Monitoring) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                try:
                    self.history.add(rates_by_series(await call(monitoring.snapshot)))
                except OSError as error:
                    logger.warning("rates over time: %s", error)
            await asyncio.sleep(HISTORY_PERIOD_S)


def rates_by_series(snapshot: Snapshot) -> dict[str, float]:
    """Return the rates of all counters by their series, with the labels of their services."""
    found: dict[str, float] = {}
    for key, rates in snapshot.rates.items():
        service = f'detector="{key.detector}",service="{key.service}",instance_id="{key.instance_id}"'
        for series, rate in rates.items():
            name, _, labels = series.partition("{")
            found[f"{name}{{{service}{',' + labels if labels else '}'}"] = rate
    return found
