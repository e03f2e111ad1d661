"""Rates over time, with a clock that the test sets."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.processes.deployment import Deployment, wait_until
from support.processes.web import RestService

from stddaq.daemon.log import logger
from stddaq.web import history as history_module
from stddaq.web.history import N_SECONDS, History


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def filled(n: int) -> tuple[History, Clock]:
    """Return a history with the rate of `a` at the second n equal to n."""
    clock = Clock()
    history = History(clock)
    for second in range(n):
        history.add({'stddaq_a_total{service="x"}': float(second)})
        clock.now += 1
    return history, clock


def test_last_hour_is_kept_by_the_second_and_a_day_by_the_minute() -> None:
    history, clock = filled(N_SECONDS + 10)
    found = history.since(0, [], by_minute=False)
    (values,) = found["series"].values()
    assert len(found["t"]) == len(values) == N_SECONDS
    assert (values[0], values[-1]) == (10, N_SECONDS + 9)
    assert found["t"] == sorted(found["t"])
    assert history.since(clock.now - 3, [], by_minute=False)["t"] == [clock.now - 2, clock.now - 1]
    minutes = history.since(0, [], by_minute=True)
    (means,) = minutes["series"].values()
    assert (len(means), means[0], means[1]) == (60, 29.5, 89.5)


def test_series_are_chosen_by_the_name_of_their_metric() -> None:
    history, _ = filled(2)
    history.add({"stddaq_b_total": 1.0})
    assert list(history.since(0, ["stddaq_b_total"], by_minute=False)["series"]) == ["stddaq_b_total"]
    assert history.since(0, ["stddaq"], by_minute=False)["series"] == {}
    both = history.since(0, [], by_minute=False)["series"]
    assert both['stddaq_a_total{service="x"}'] == [0, 1, None]
    assert both["stddaq_b_total"] == [None, None, 1]


def test_counters_that_do_not_change_are_left_out() -> None:
    history, clock = filled(3)
    history.add({"stddaq_b_total": 0.0})
    clock.now += 1
    assert len(history.since(0, [], by_minute=False)["series"]) == 1
    assert history.since(clock.now - 1.5, [], by_minute=False)["series"] == {}


def test_series_are_limited_and_those_of_ended_services_are_dropped(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(history_module, "MAX_SERIES", 30)
    # Services of tests that ran in this process log by a handler of their own.
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "propagate", True)
    history, _ = filled(0)
    for _ in range(2 * history_module.N_SECONDS + 2):
        history.add({"stddaq_b_total": 1.0})
    history.add({f"stddaq_c_total{{n={n}}}": 1.0 for n in range(60)})
    assert len(history.since(0, [], by_minute=False)["series"]) == 30
    assert caplog.text.count("more than 30 counters") == 1


def test_rates_of_services_are_noted(rest: RestService, deployment: Deployment) -> None:
    def series() -> dict[str, Any]:
        return rest.get("/api/history", metrics="stddaq_http_requests_total").json()["series"]

    name = f'stddaq_http_requests_total{{detector="{deployment.detector_name}",service="stddaq-rest",'
    wait_until(lambda: any(value for key in series() if key.startswith(name) for value in series()[key]), 30)
    assert rest.get("/api/history", metrics="stddaq_absent").json()["series"] == {}
    assert rest.get("/api/history", since="x").status_code == 422


def test_health_has_rings_disks_and_gauges(rest: RestService) -> None:
    table = rest.get("/api/health").json()
    (ring,) = table["rings"]
    assert ring["detector"] == rest.deployment.detector_name
    assert ring["shm_free_bytes"] > 0
    (disk,) = table["disks"]
    assert disk["path"] == rest.deployment.config["allowed_roots"][0]
    assert disk["size_bytes"] >= disk["free_bytes"] > 0
    wait_until(lambda: rest.get("/api/health").json()["services"], 20, "the page of the service")
    (service,) = rest.get("/api/health").json()["services"]
    assert service["gauges"]["stddaq_process_memory_anonymous_bytes"] > 1e6

    # The page shows the disks of the configuration that counts now.
    config = rest.config_on_disk() | {"allowed_roots": [str(rest.root), str(rest.root)]}
    rest.deployment.config_path.write_text(json.dumps(config))
    wait_until(
        lambda: [one["path"] for one in rest.get("/api/health").json()["disks"]] == [str(rest.root)], 20
    )
