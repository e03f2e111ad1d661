"""The files for Prometheus and Grafana; test_alerts.py provokes the faults that fire the alerts."""

from __future__ import annotations

import json
import re
import subprocess

import pytest
import yaml
from support.peers.prometheus import ALERTS, FILES, program
from support.processes.deployment import Deployment, wait_until
from support.processes.web import RestService

from stddaq.daemon.metrics import FRAMES_CORRUPTED, TABLE

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


def test_grafana_shows_all_losses() -> None:
    patterns = {pattern for text in expressions_of_grafana() for pattern in _PATTERN.findall(text)}
    losses = sorted(name for name, metric in TABLE.items() if metric.is_loss)
    assert patterns
    for pattern in patterns:
        assert sorted(f"stddaq_{name}_total" for name in re.split(r"[(|)]", pattern)[1:-1]) == losses


def test_every_loss_has_an_alert() -> None:
    watched = {name for rule in rules() for name in _NAME.findall(rule["expr"])}
    # Corrupted frames lack packets, which have their alert.
    watched.add(FRAMES_CORRUPTED.name)
    assert sorted(name for name, metric in TABLE.items() if metric.is_loss and name not in watched) == []


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
