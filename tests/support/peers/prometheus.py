"""A real Prometheus of Debian with the alert rules of this repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import pytest
import requests
import yaml
from support.processes.deployment import free_port, wait_until

from stddaq.closing import Closing

FILES = Path(__file__).parents[3] / "services"
ALERTS = FILES / "prometheus" / "alerts.yml"
START_TIMEOUT_S = 60.0


def program(name: str) -> str:
    """Return the path of a program of Prometheus; skip the test without it."""
    unpacked = Path(sys.prefix) / "prometheus" / "usr" / "bin"
    found = shutil.which(name, path=f"{unpacked}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        pytest.skip("needs the package prometheus of Debian or Ubuntu, see .ci/make-debian-program")
    return found


class Prometheus(Closing):
    """A running Prometheus, which scrapes every two seconds, after `start`."""

    def __init__(self, directory: Path, targets: Sequence[str]) -> None:
        """`targets`: host and port of each `stddaq-rest`. Files are in `directory`."""
        config = yaml.safe_load((FILES / "prometheus" / "prometheus.yml").read_text())
        # An answer must come within this interval, also beside other tests, for thirty detectors.
        config["global"] = {"scrape_interval": "2s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(ALERTS)]
        config["scrape_configs"][0]["static_configs"] = [{"targets": list(targets)}]
        self._path = directory / "prometheus.yml"
        self._path.write_text(yaml.safe_dump(config))
        self._n_targets, self._directory = len(targets), directory
        port = free_port()
        self._url = f"http://127.0.0.1:{port}/api/v1"
        self._command = [
            program("prometheus"),
            f"--config.file={self._path}",
            f"--storage.tsdb.path={directory / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
        self._close = ExitStack()

    def start(self) -> Self:
        """Start it, and wait until it has scraped each target."""
        with (self._directory / "prometheus.log").open("wb") as log:
            process = subprocess.Popen(self._command, stdout=log, stderr=log)
        self._close.callback(process.wait, 30)
        self._close.callback(process.terminate)
        wait_until(self._is_ready, START_TIMEOUT_S, "Prometheus", period=0.1)
        return self

    def _is_ready(self) -> bool:
        try:
            return self.value("sum(up)") == self._n_targets
        except (OSError, ValueError, KeyError):
            return False

    def value(self, expression: str) -> float | None:
        """Return the value of an expression with one result; None without a result."""
        answer = requests.get(f"{self._url}/query", params={"query": expression}, timeout=10).json()
        results = answer["data"]["result"]
        return float(results[0]["value"][1]) if results else None

    def fired(self) -> dict[str, set[str]]:
        """Return the alerts that have fired, by their detector, or by the exporter's address without one."""
        query = 'count_over_time(ALERTS{alertstate="firing"}[1h])'
        answer = requests.get(f"{self._url}/query", params={"query": query}, timeout=10).json()
        found: dict[str, set[str]] = defaultdict(set)
        for result in answer["data"]["result"]:
            labels: dict[str, str] = result["metric"]
            found[labels.get("detector") or labels["instance"]].add(labels["alertname"])
        return found

    def close(self) -> None:
        self._close.close()
