"""bluesky-queueserver as a process, with its own redis-server; `make test-all` installs both."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import zmq
from support.processes.deployment import Service, free_port, wait_until

from stddaq.closing import Closing

# A second environment, which `make test-all` creates.
PYTHON = Path(sys.prefix) / "queues" / "bin" / "python"
# Its processes import bluesky and ophyd one after the other.
START_TIMEOUT_S = 100.0
PERMISSIONS = """
user_groups:
  root:
    allowed_plans: [null]
    allowed_devices: [null]
  primary:
    allowed_plans: [":.*"]
    allowed_devices: [":?.*:depth=5"]
"""
WHO = {"user": "test", "user_group": "primary"}


class QueueServer(Closing):
    """A manager with the startup `script` in `directory`; a context manager."""

    def __init__(self, directory: Path, script: str) -> None:
        assert PYTHON.exists(), (
            f"{PYTHON}: missing; `make test-all` creates it, or sh .ci/make-queues {sys.prefix}"
        )
        startup = directory / "startup"
        startup.mkdir()
        (startup / "startup.py").write_text(script)
        (startup / "user_group_permissions.yaml").write_text(PERMISSIONS)
        redis_port, self._port = free_port(), free_port()
        # Settings of a user's home directory do not count.
        env = os.environ | {"HOME": str(directory)}
        redis = [str(PYTHON.with_name("redis-server")), "--port", str(redis_port), "--bind", "127.0.0.1"]
        self._redis = Service([*redis, "--save", "", "--dir", str(directory)], env)
        self._redis.wait_for_line("Ready to accept connections|ready to accept connections", START_TIMEOUT_S)
        command = [
            *(str(PYTHON.with_name("start-re-manager")), "--startup-dir", str(startup)),
            *("--update-existing-plans-devices", "ENVIRONMENT_OPEN"),
            *("--redis-addr", f"127.0.0.1:{redis_port}"),
            *("--zmq-control-addr", f"tcp://127.0.0.1:{self._port}"),
            *("--zmq-info-addr", f"tcp://127.0.0.1:{free_port()}"),
        ]
        self.service = Service(["sh", "-c", 'exec "$@" 2>&1', "sh", *command], env)
        self._context = zmq.Context()
        wait_until(lambda: self.ask("ping", timeout=1.0), START_TIMEOUT_S, "the manager to answer")

    def ask(self, method: str, timeout: float = 20.0, **params: Any) -> dict[str, Any]:
        """Send one request and return the answer, {} when there is none."""
        with self._context.socket(zmq.REQ) as requests:
            requests.linger = 0
            requests.connect(f"tcp://127.0.0.1:{self._port}")
            requests.send_json({"method": method, "params": params})
            if not requests.poll(int(1000 * timeout)):
                return {}
            answer: Any = requests.recv_json()
            return answer

    def do(self, method: str, **params: Any) -> dict[str, Any]:
        """Send one request, which must succeed."""
        answer = self.ask(method, **params)
        assert answer.get("success"), (method, params, answer, self.service.output[-3000:])
        return answer

    def status(self) -> dict[str, Any]:
        """Return the state of the manager and of its RunEngine."""
        return self.ask("status")

    def wait_for(self, **wanted: Any) -> None:
        """Wait until the status has the values `wanted`."""
        wait_until(
            lambda: wanted.items() <= self.status().items(), START_TIMEOUT_S, f"{wanted} in {self.status()}"
        )

    def open(self) -> None:
        """Open the environment in which plans run."""
        self.do("environment_open")
        self.wait_until_open()

    def wait_until_open(self) -> None:
        """Wait until plans can run in the environment that opens."""
        self.wait_for(worker_environment_exists=True, manager_state="idle", worker_environment_state="idle")
        wait_until(lambda: self.do("plans_allowed", user_group="primary")["plans_allowed"], what="plans")

    def add(self, name: str, *args: Any, **kwargs: Any) -> None:
        """Put a plan at the end of the queue."""
        item = {"item_type": "plan", "name": name, "args": list(args), "kwargs": kwargs}
        self.do("queue_item_add", item=item, **WHO)

    def run(self) -> None:
        """Run all plans of the queue to their end, or to the first that fails."""
        self.do("queue_start")
        self.wait_for(manager_state="idle")

    def history(self) -> list[tuple[str, str]]:
        """Return name and exit status of all plans that have ended."""
        items = self.do("history_get")["items"]
        return [(item["name"], item["result"]["exit_status"]) for item in items]

    def close(self) -> None:
        # A manager that receives SIGTERM while it destroys the environment may never exit.
        try:
            self.ask("environment_destroy")
            self.wait_for(worker_environment_exists=False)
            self.ask("manager_stop", option="safe_off")
            self.service.wait(START_TIMEOUT_S)
        finally:
            self.service.kill()
            self._redis.end(timeout=START_TIMEOUT_S)
            self._context.destroy(linger=0)


def read_documents(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return the documents that a startup script wrote, one in a line."""
    return [tuple(json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []
