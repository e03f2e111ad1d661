"""blueapi as a process, in an environment of its own that `make test-all` creates."""

from __future__ import annotations

import json
import os
import sys
import urllib.request
from pathlib import Path
from typing import Any
from urllib.error import URLError

from support.processes.deployment import Service, free_port, wait_until

from stddaq.closing import Closing

PYTHON = Path(sys.prefix) / "blueapi" / "bin" / "python"
START_TIMEOUT_S = 100.0
# blueapi asks a manager for the devices.
MANAGER = """

class Built:
    build_errors = {}
    connection_errors = {}

    def __init__(self, devices):
        self.devices = devices


class Manager:
    def build_and_connect(self, *, mock=False, timeout=None, fixtures=None):
        return Built({device.name: device for device in devices})


manager = Manager()
"""


class BlueapiServer(Closing):
    """A server with the plans of modules and the list `devices` of the module `script`; a context manager."""

    def __init__(self, directory: Path, script: str, plans: list[str]) -> None:
        assert PYTHON.exists(), (
            f"{PYTHON}: missing; `make test-all` creates it, or sh .ci/make-queues {sys.prefix}"
        )
        (directory / "test_beamline.py").write_text(script + MANAGER)
        self._url = f"http://127.0.0.1:{free_port()}"
        sources = [{"kind": "planFunctions", "module": module} for module in plans]
        sources.append({"kind": "deviceManager", "module": "test_beamline", "name": "manager"})
        # JSON is YAML.
        config = {"env": {"sources": sources}, "api": {"url": self._url}}
        (directory / "blueapi.yaml").write_text(json.dumps(config))
        command = [str(PYTHON.with_name("blueapi")), "-c", str(directory / "blueapi.yaml"), "serve"]
        env = os.environ | {"HOME": str(directory), "PYTHONPATH": str(directory)}
        self.service = Service(["sh", "-c", 'exec "$@" 2>&1', "sh", *command], env)
        wait_until(self._is_ready, START_TIMEOUT_S, "blueapi to be ready")

    def _is_ready(self) -> bool:
        assert self.service.returncode is None, self.service.output
        try:
            return self.ask("GET", "/environment")["initialized"]
        except (OSError, URLError):
            return False

    def ask(self, method: str, path: str, content: object = None) -> Any:
        """Send a request and return the answer."""
        data = None if content is None else json.dumps(content).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self._url + path, data, headers, method=method)
        with urllib.request.urlopen(request, timeout=20) as response:
            return json.load(response)

    def run(self, plan: str, **params: Any) -> dict[str, Any]:
        """Run a plan to its end, and return what became of it."""
        task = {"name": plan, "params": params, "instrument_session": "cm1-1"}
        task_id = self.ask("POST", "/tasks", task)["task_id"]
        self.ask("PUT", "/worker/task", {"task_id": task_id})
        wait_until(
            lambda: self.ask("GET", f"/tasks/{task_id}")["is_complete"], START_TIMEOUT_S, f"the end of {plan}"
        )
        found: dict[str, Any] = self.ask("GET", f"/tasks/{task_id}")
        return found

    def close(self) -> None:
        self.service.end(timeout=START_TIMEOUT_S)
