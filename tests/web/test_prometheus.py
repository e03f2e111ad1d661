"""The files for Prometheus and Grafana, and alerts that a real Prometheus fires."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests
import yaml
from support.processes.deployment import Deployment, free_port, wait_until
from support.processes.recording import DAMAGED, MakeRig, Rig, image_of, images_of
from support.processes.web import RestService

from stddaq.daemon.metrics import TABLE

FILES = Path(__file__).parents[2] / "services"
ALERTS = FILES / "prometheus" / "alerts.yml"
_NAME = re.compile(r"stddaq_[a-z_]+")
# A pattern over the names of metrics.
_PATTERN = re.compile(r"stddaq_\([a-z_|]+\)_total")


def rules() -> list[dict[str, str]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def expressions_of_grafana() -> list[str]:
    dashboard = json.loads((FILES / "grafana" / "stddaq.json").read_text())
    variables = [variable["query"] for variable in dashboard["templating"]["list"]]
    return variables + [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


@pytest.mark.parametrize("expression", [*(rule["expr"] for rule in rules()), *expressions_of_grafana()])
def test_metrics_of_alerts_and_panels_exist(expression: str) -> None:
    names = set(_NAME.findall(_PATTERN.sub("", expression)))
    for pattern in _PATTERN.findall(expression):
        names |= {name for name in re.split(r"[(|)]", pattern)[1:-1] if f"stddaq_{name}_total" not in TABLE}
    assert sorted(name for name in names if name not in TABLE) == []


def test_every_alert_has_a_test_with_series_that_exist() -> None:
    tests = yaml.safe_load(ALERTS.with_name("alerts_test.yml").read_text())["tests"]
    assert {rule["alert"] for rule in rules()} <= {test["name"] for test in tests}
    for test in tests:
        for given in test["input_series"]:
            name, _, labels = given["series"].partition("{")
            if name == "up":
                continue
            own = set(re.findall(r"(\w+)=", labels)) - {"detector", "service", "instance_id"}
            assert own <= set(TABLE[name].labels), given["series"]


def program(name: str) -> str:
    """Return the path of a program of Prometheus; skip the test without it."""
    unpacked = Path(sys.prefix) / "prometheus" / "usr" / "bin"
    found = shutil.which(name, path=f"{unpacked}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        pytest.skip("needs the package prometheus of Debian or Ubuntu, see .ci/make-debian-program")
    return found


def promtool(*args: object, text: str = "") -> str:
    command = [program("promtool"), *map(str, args)]
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.external
def test_promtool_accepts_the_files_and_each_alert_fires_for_its_fault_only() -> None:
    promtool("check", "config", FILES / "prometheus" / "prometheus.yml")
    promtool("test", "rules", ALERTS.with_name("alerts_test.yml"))


@pytest.mark.external
def test_promtool_accepts_the_metrics(rest: RestService, deployment: Deployment) -> None:
    deployment.start_writers()
    wait_until(lambda: rest.get("/metrics").text.count("stddaq_images_written_total{") == 2, 20)
    assert promtool("check", "metrics", text=rest.get("/metrics").text) == ""


class Prometheus:
    """A running Prometheus with our alert rules, which scrapes each second."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/api/v1"

    def value(self, expression: str) -> float | None:
        """Return the value of an expression with one result; None without a result."""
        answer = requests.get(f"{self._url}/query", params={"query": expression}, timeout=10).json()
        results = answer["data"]["result"]
        return float(results[0]["value"][1]) if results else None

    def is_ready(self) -> bool:
        try:
            return self.value("up") == 1
        except (OSError, ValueError, KeyError):
            return False

    def firing(self) -> set[str]:
        alerts = requests.get(f"{self._url}/alerts", timeout=10).json()["data"]["alerts"]
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}

    def wait_for(self, alert: str) -> None:
        """Wait until `alert` fires, and check that no other does."""
        wait_until(lambda: alert in self.firing(), 60, f"{alert} fires")
        assert self.firing() == {alert}


@pytest.fixture
def start_prometheus(tmp_path: Path) -> Iterator[Callable[[RestService], Prometheus]]:
    """Return a function that starts a Prometheus for a `stddaq-rest`, and waits until it has scraped it."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(rest: RestService) -> Prometheus:
        config = yaml.safe_load((FILES / "prometheus" / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(ALERTS)]
        config["scrape_configs"][0]["static_configs"] = [{"targets": [rest.url.removeprefix("http://")]}]
        path, port = tmp_path / "prometheus.yml", free_port()
        path.write_text(yaml.safe_dump(config))
        command = [
            program("prometheus"),
            f"--config.file={path}",
            f"--storage.tsdb.path={tmp_path / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
        with (tmp_path / "prometheus.log").open("wb") as log:
            processes.append(subprocess.Popen(command, stdout=log, stderr=log))
        server = Prometheus(port)
        wait_until(server.is_ready, 60, "Prometheus")
        return server

    yield start
    for process in processes:
        process.terminate()
        process.wait(30)


@pytest.fixture
def watched(
    make_rig: MakeRig, start_prometheus: Callable[[RestService], Prometheus], tmp_path: Path
) -> tuple[Rig, Prometheus]:
    """Return driver and writers, and the Prometheus that watches them and has seen all of them."""
    rig = make_rig()
    prometheus = start_prometheus(RestService.start(rig.deployment, tmp_path / "roots"))
    wait_until(lambda: prometheus.value("count(stddaq_service_up == 1)") == 4, 60, "all services")
    assert prometheus.firing() == set()
    return rig, prometheus


def kill_writer(rig: Rig) -> None:
    rig.writers[1].kill()


def record_damaged_image(rig: Rig) -> None:
    rig.record([image_of(1), image_of(2, status=DAMAGED)])


def record_with_a_gap(rig: Rig) -> None:
    rig.record([image_of(1), image_of(5)])


def break_configuration(rig: Rig) -> None:
    rig.deployment.config_path.write_text("{")


def record_with_a_restart(rig: Rig) -> None:
    rig.record([*images_of(range(100, 110)), *images_of(range(3))])


FAULTS: dict[str, Callable[[Rig], None]] = {
    "StddaqServiceDown": kill_writer,
    "StddaqImagesDamaged": record_damaged_image,
    "StddaqIdsSkipped": record_with_a_gap,
    "StddaqIdsRestarted": record_with_a_restart,
    "StddaqConfigurationInvalid": break_configuration,
}


@pytest.mark.external
@pytest.mark.parametrize("alert", FAULTS)
def test_fault_fires_exactly_its_alert(watched: tuple[Rig, Prometheus], alert: str) -> None:
    rig, prometheus = watched
    FAULTS[alert](rig)
    prometheus.wait_for(alert)
