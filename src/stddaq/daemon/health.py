"""Which services of a detector work, from their metrics pages and from what `stddaq up` keeps running."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from stddaq.daemon import metrics
from stddaq.daemon.metrics_reader import Page, Pages

State = Literal["works", "silent", "ended", "missing", "not_needed"]


@dataclass(frozen=True, slots=True)
class ServiceHealth:
    """One service.

    Attributes:
        state: `works`; `silent`: its process runs and its main loop does not; `ended`: its process does not
            run any more; `missing`: it has not started, or has ended in order; `not_needed`: it does not run,
            and need not.
        is_wanted: it should run.
        page: what it has published last; None if it never came.
        n_restarts: by `stddaq up`, after crashes; None if `stddaq up` does not run it.
    """

    detector: str
    service: str
    instance_id: str
    state: State
    is_wanted: bool
    page: Page | None = None
    n_restarts: int | None = None

    @property
    def is_well(self) -> bool:
        """Whether it works, or need not."""
        return self.state in ("works", "not_needed") or not self.is_wanted

    @property
    def losses(self) -> dict[str, float]:
        """What it has lost since its start, by the name of the counter."""
        found: dict[str, float] = {}
        for series, value in self.page.values.items() if self.page else ():
            # A filter skips ids in order.
            if series.metric.is_loss and (
                series.metric is not metrics.IDS_SKIPPED or series.labels != ("filter",)
            ):
                found[series.metric.name] = found.get(series.metric.name, 0) + value
        return found

    @property
    def name(self) -> str:
        """Its program and its number or port, for people."""
        return f"{self.service} {self.instance_id}".rstrip()


def health_of(detector: str, pages: Pages) -> list[ServiceHealth]:
    """Return all services that have published a page, or that a running `stddaq up` wants."""
    by_name = {(page.service, page.instance_id): page for page in pages.valid}
    wanted = _told_by_up(pages.valid, metrics.WANTED)
    restarts = _told_by_up(pages.valid, metrics.SERVICE_RESTARTS)
    table = []
    for name in sorted(by_name.keys() | wanted.keys()):
        page = by_name.get(name)
        # A service that ends in order removes its page, so one that has left its page should run.
        is_wanted = bool(wanted.get(name, 1))
        n_restarts = int(restarts[name]) if name in restarts else None
        state = state_of(page, is_wanted)
        table.append(ServiceHealth(detector, *name, state, is_wanted, page, n_restarts))
    return table


def state_of(page: Page | None, is_wanted: bool) -> State:
    """Return the state of a service with this page."""
    if page is None or not page.is_running:
        if not is_wanted:
            return "not_needed"
        return "ended" if page else "missing"
    return "silent" if page.age_s > page.silent_after_s else "works"


def _told_by_up(pages: Sequence[Page], metric: metrics.Metric) -> dict[tuple[str, str], float]:
    """Return a value per service from the pages of the `stddaq up` that run."""
    return {
        (series.labels[0], series.labels[1]): value
        for page in pages
        if page.is_running
        for series, value in page.values.items()
        if series.metric is metric
    }
