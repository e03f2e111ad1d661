"""`/metrics`, `/health` and `/api/health` of services that run, hang and end."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families
from support.processes.deployment import Deployment, wait_until
from support.processes.web import RestService
from websockets.sync.client import connect

from stddaq.daemon import metrics
from stddaq.daemon.metrics import TABLE, Metric, Series
from stddaq.daemon.metrics_page import start_ticks
from stddaq.daemon.metrics_reader import Page, Pages
from stddaq.web import monitoring
from stddaq.web.disks import Disks
from stddaq.web.metrics_text import CONTENT_TYPE, Sample, metrics_text
from stddaq.web.monitoring import MonitoredDetector, Monitoring
from stddaq.web.process_usage import process_usage

Labels = dict[str, str]
GRAFANA = "https://grafana.example/d/stddaq?var-detector=GF2"


def parsed(text: str) -> dict[str, list[tuple[Labels, float]]]:
    """Return the samples of a text by name, read by Prometheus' own parser."""
    found: dict[str, list[tuple[Labels, float]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def samples(rest: RestService) -> dict[str, list[tuple[Labels, float]]]:
    response = rest.get("/metrics")
    assert response.status_code == 200
    assert response.headers["Content-Type"] == CONTENT_TYPE
    return parsed(response.text)


def value(rest: RestService, metric: Metric, **labels: str) -> float:
    """Return the only value of a metric with these labels; NaN without one."""
    found = [value for own, value in samples(rest).get(metric.name, []) if labels.items() <= own.items()]
    assert len(found) < 2
    return found[0] if found else math.nan


def table(rest: RestService) -> dict[str, dict[str, Any]]:
    """Return the rows of the health table by service and id."""
    rows = rest.get("/api/health").json()["services"]
    return {f"{row['service']} {row['id']}".rstrip(): row for row in rows}


def wait_for_state(rest: RestService, name: str, state: str) -> dict[str, Any]:
    def found() -> dict[str, Any] | None:
        row = table(rest).get(name)
        return row if row and row["state"] == state else None

    return wait_until(found, 30, f"{name} {state}")


@pytest.mark.slow
def test_metrics_are_those_of_the_table_and_carry_its_help(rest: RestService, deployment: Deployment) -> None:
    deployment.start("std_det_writer", 1)
    wait_for_state(rest, "std_det_writer 1", "works")
    text = rest.get("/metrics").text
    names = parsed(text)
    assert names.keys() <= TABLE.keys()
    assert {
        "stddaq_images_written_total",
        "stddaq_disk_free_bytes",
        "stddaq_http_requests_total",
    } <= names.keys()
    for name in names:
        assert f"# HELP {name} {TABLE[name].help}\n# TYPE {name} {TABLE[name].kind}\n" in text
    own = {"detector": deployment.detector_name, "service": "std_det_writer", "instance_id": "1"}
    assert names["stddaq_images_written_total"] == [(own | {"source": "image"}, 0)]
    assert names["stddaq_process_cpu_seconds_total"][0][1] > 0
    assert value(rest, metrics.CONFIGURATION_VALID) == 1


@pytest.mark.slow
def test_health_names_a_killed_service_until_it_runs_again(rest: RestService, deployment: Deployment) -> None:
    writer = deployment.start("std_det_writer", 0)
    wait_for_state(rest, "std_det_writer 0", "works")
    wait_until(lambda: rest.get("/health").json() == {"status": "ok", "services": []}, what="health")
    writer.kill()
    row = wait_for_state(rest, "std_det_writer 0", "ended")
    assert row["wanted"]
    health = rest.get("/health")
    assert health.status_code == 503
    name = f"{deployment.detector_name}: std_det_writer 0: ended"
    assert health.json() == {"status": "failing", "services": [name]}
    labels = {"service": "std_det_writer"}
    assert value(rest, metrics.SERVICE_UP, **labels) == 0
    assert value(rest, metrics.SERVICE_WANTED, **labels) == 1
    # What was counted stays; a gauge of a process that has ended would be wrong.
    assert value(rest, metrics.IMAGES_WRITTEN, **labels) == 0
    assert math.isnan(value(rest, metrics.IMAGE_WRITE_LONGEST_SECONDS, **labels))
    deployment.start("std_det_writer", 0)
    assert wait_for_state(rest, "std_det_writer 0", "works")["pid"] != row["pid"]
    wait_until(lambda: rest.get("/health").status_code == 200, 20)


@pytest.mark.slow
def test_silent_service_is_named(rest: RestService, deployment: Deployment) -> None:
    writer = deployment.start("std_det_writer", 0)
    wait_for_state(rest, "std_det_writer 0", "works")
    writer.send(signal.SIGSTOP)
    row = wait_for_state(rest, "std_det_writer 0", "silent")
    assert row["age_s"] > 4
    assert rest.get("/health").status_code == 503
    writer.send(signal.SIGCONT)
    wait_for_state(rest, "std_det_writer 0", "works")


def test_rest_answers_for_itself_and_counts_its_responses(rest: RestService) -> None:
    assert rest.get("/health/live").json() == {"status": "ok"}
    assert rest.get("/absent").status_code == 404
    assert rest.post("/api/config/set").status_code == 422
    assert requests.request("BREW", f"{rest.url}/health/live", timeout=20).status_code == 405
    with connect(f"ws{rest.url.removeprefix('http')}/api/run/ws"):
        pass
    port = rest.url.rpartition(":")[2]
    wait_for_state(rest, f"stddaq-rest {port}", "works")
    for method, status in (("GET", "4xx"), ("POST", "4xx"), ("other", "4xx"), ("WEBSOCKET", "1xx")):
        counted = partial(value, rest, metrics.HTTP_REQUESTS, method=method, status=status)
        wait_until(lambda counted=counted: counted() == 1, 20, f"{method} {status}")


@pytest.mark.slow
def test_services_with_an_older_configuration_are_seen(rest: RestService, deployment: Deployment) -> None:
    def etag_of(service: str) -> str | None:
        return table(rest).get(service, {}).get("config_etag")

    deployment.start("std_det_writer", 0)
    old = rest.get("/api/config/get", user="me").headers["ETag"].strip('"')
    wait_until(lambda: etag_of("std_det_writer 0") == old, 20)
    changed = rest.set(rest.deployment.config | {"stats_collection_period": 7})
    new = changed.headers["ETag"].strip('"')
    assert new != old
    deployment.start("std_det_writer", 1)
    wait_until(lambda: etag_of("std_det_writer 1") == new, 20)
    info = parsed(rest.get("/metrics").text)["stddaq_service_info"]
    by_id = {labels["instance_id"]: labels["config_etag"] for labels, _ in info}
    assert (by_id["0"], by_id["1"]) == (old, new)


@pytest.mark.slow
def test_bad_pages_are_counted_and_logged_once(rest: RestService, deployment: Deployment) -> None:
    port = rest.url.rpartition(":")[2]
    wait_for_state(rest, f"stddaq-rest {port}", "works")
    bad = deployment.pages / "std_det_writer-7"
    bad.write_bytes(b"\xff" * 9000)
    wait_until(lambda: value(rest, metrics.PAGES_REJECTED) >= 2, 30)
    bad.unlink()
    rest.process.wait_for_line("std_det_writer-7 rejected")
    assert len([line for line in rest.process.stdout if "std_det_writer-7 rejected" in line]) == 1


def test_invalid_configuration_is_shown(rest: RestService, deployment: Deployment) -> None:
    deployment.config_path.write_text("{")
    wait_until(lambda: value(rest, metrics.CONFIGURATION_VALID) == 0, 20)
    deployment.write_config()
    wait_until(lambda: value(rest, metrics.CONFIGURATION_VALID) == 1, 20)


def test_metrics_need_the_token(start_rest: Callable[..., RestService], token_file: Path) -> None:
    rest = start_rest("--token-file", token_file)
    for path in ("/metrics", "/health", "/api/health"):
        assert rest.get(path).status_code == 401


def test_rates_are_those_between_two_writings_of_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Pages are read about as often as they are written, at any moments between.
    writings = [(50.0, 100.0), (50.0, 100.0), (51.0, 110.0), (51.0, 110.0), (53.0, 130.0)]
    pages = [_page(heartbeat_s, count) for heartbeat_s, count in writings]
    pages.append(dataclasses.replace(pages[-1], is_running=False))
    monkeypatch.setattr(monitoring, "read_pages", lambda name: Pages([pages.pop(0)]))
    monkeypatch.setattr(monitoring, "CACHE_S", 0.0)
    monitored = Monitoring([MonitoredDetector("GF2", tmp_path / "GF2.json")])
    found = [next(iter(monitored.snapshot().rates.values())) for _ in range(6)]
    name = f'{metrics.IMAGES_RECEIVED.name}{{source="image"}}'
    assert [rates.get(name) for rates in found] == [None, None, 10, 10, 10, 0]


def _page(heartbeat_s: float, n_received: float) -> Page:
    values = {Series(metrics.IMAGES_RECEIVED, ("image",)): n_received}
    return Page("driver", "", "1.0", "etag", os.getpid(), 0, 9.0, heartbeat_s, 0.1, 4.0, True, values)


def test_labels_are_escaped() -> None:
    labels = {"path": 'a"b\\c\nd', "detector": "é"}
    text = metrics_text([Sample(metrics.DISK_FREE_BYTES, labels, 0.5)])
    assert parsed(text) == {"stddaq_disk_free_bytes": [(labels, 0.5)]}


def test_disk_that_does_not_answer_is_left_out(tmp_path: Path) -> None:
    disks = Disks()
    usage = disks.usage(tmp_path)
    assert usage
    assert 0 < usage.free_bytes < usage.size_bytes
    assert disks.usage(tmp_path / "absent") is None


def test_usage_of_another_process_with_the_same_pid_is_not_shown() -> None:
    ticks = start_ticks(os.getpid())
    assert process_usage(os.getpid(), ticks)[metrics.PROCESS_MEMORY] > 0
    assert process_usage(os.getpid(), ticks + 1) == {}


@pytest.mark.parametrize("number", [0, 7, 2**53, 0.1, 1e-9])
def test_numbers_survive(number: float) -> None:
    text = metrics_text([Sample(metrics.DISK_FREE_BYTES, {}, number)])
    assert parsed(text)["stddaq_disk_free_bytes"] == [({}, number)]


def test_address_of_grafana_is_that_of_the_option(
    start_rest: Callable[..., RestService], deployment: Deployment
) -> None:
    assert start_rest("--grafana-url", GRAFANA).get("/api/health").json()["grafana_url"] == GRAFANA
    for wrong in ("javascript:alert(1)", "grafana.example", "https://"):
        service = deployment.start("stddaq-rest", "--grafana-url", wrong, ready=None)
        assert service.wait() == 2
        assert "expected an address that starts with http:// or https://" in service.stderr[0]
