"""The states of services, from their pages and from what `stddaq up` wants."""

from __future__ import annotations

import pytest

from stddaq.daemon import metrics
from stddaq.daemon.health import ServiceHealth, health_of
from stddaq.daemon.metrics import Series
from stddaq.daemon.metrics_reader import Page, Pages


def page(service: str, *, age_s: float = 0.1, is_running: bool = True, **wanted: float) -> Page:
    """Return the page of a service; `wanted`: what it says as `stddaq up` of other services."""
    values = {Series(metrics.WANTED, (name, "")): value for name, value in wanted.items()}
    restarts = {Series(metrics.SERVICE_RESTARTS, (name, "")): 2.0 for name in wanted}
    return Page(service, "", "1.0", "etag", 7, 8, 9.0, 50.0, age_s, 4.0, is_running, values | restarts)


def only(service: str, *pages: Page) -> ServiceHealth:
    found = [row for row in health_of("GF2", Pages([*pages])) if row.service == service]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize(
    ("age_s", "is_running", "state"),
    [(0.1, True, "works"), (3.9, True, "works"), (4.1, True, "silent"), (0.1, False, "ended")],
)
def test_state_follows_from_heartbeat_and_process(age_s: float, is_running: bool, state: str) -> None:
    row = only("driver", page("driver", age_s=age_s, is_running=is_running))
    assert (row.state, row.is_wanted, row.is_well) == (state, True, state == "works")
    assert row.n_restarts is None


def test_service_that_never_came_is_shown() -> None:
    row = only("writer", page("up", writer=1))
    assert (row.state, row.page, row.is_well, row.n_restarts) == ("missing", None, False, 2)


def test_service_that_is_not_wanted_may_end() -> None:
    row = only("replay", page("up", replay=0))
    assert (row.state, row.is_wanted, row.is_well) == ("not_needed", False, True)


def test_silent_up_still_says_what_it_wants_and_one_that_has_ended_does_not() -> None:
    assert only("writer", page("up", age_s=99, writer=1)).state == "missing"
    rows = health_of("GF2", Pages([page("up", is_running=False, writer=1)]))
    assert [(row.service, row.state) for row in rows] == [("up", "ended")]


def test_losses_are_summed_by_kind() -> None:
    values = {
        Series(metrics.PACKETS_DROPPED, ()): 7.0,
        Series(metrics.PACKETS_REJECTED, ("late",)): 2.0,
        Series(metrics.PACKETS_REJECTED, ("repeated",)): 3.0,
        Series(metrics.PACKETS_RECEIVED, ()): 100.0,
        # A filter is there to skip ids.
        Series(metrics.IDS_SKIPPED, ("filter",)): 90.0,
        Series(metrics.IDS_SKIPPED, ("image",)): 1.0,
    }
    row = only("recv", Page("recv", "", "1.0", "etag", 7, 8, 9.0, 50.0, 0.1, 4.0, True, values))
    assert row.losses == {
        metrics.PACKETS_DROPPED.name: 7,
        metrics.PACKETS_REJECTED.name: 5,
        metrics.IDS_SKIPPED.name: 1,
    }
    assert only("writer", page("up", writer=1)).losses == {}
