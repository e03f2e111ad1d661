"""The configuration service as a real process, and a client for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
from support.processes import Deployment, Service

from stddaq.client import ConfigClient


@dataclass(frozen=True)
class RestService:
    """`stddaq-rest` running; `root` is the directory below which it uses files."""

    deployment: Deployment
    process: Service
    url: str
    root: Path
    client: ConfigClient

    def get(self, path: str, **query: Any) -> requests.Response:
        return requests.get(self.url + path, params=query, timeout=30)

    def post(self, path: str, json: Any = None, **query: Any) -> requests.Response:
        return requests.post(self.url + path, params=query, json=json, timeout=30)

    def set(self, config: Any, user: str = "me", **options: Any) -> requests.Response:
        """Send a configuration; `options` as for `requests.post`."""
        return requests.post(
            f"{self.url}/api/config/set", params={"user": user}, json=config, timeout=30, **options
        )

    @property
    def history(self) -> list[Path]:
        """Previous versions of the configuration file, the oldest first."""
        path = self.deployment.config_path
        return sorted(path.with_name(f"{path.name}.history").glob("*"))

    def config_on_disk(self) -> dict[str, Any]:
        return json.loads(self.deployment.config_path.read_text())


@pytest.fixture
def start_rest(deployment: Deployment, tmp_path: Path) -> Callable[..., RestService]:
    """Starts the service with further options, and waits until it is ready."""

    def start(*args: object) -> RestService:
        root = tmp_path / "files"
        root.mkdir(exist_ok=True)
        process = deployment.start("stddaq-rest", "--port", 0, "--root", root, *args, ready=None)
        url = process.wait_for_line(r"ready: listening on (http://\S+)")[1]
        return RestService(deployment, process, url, root, ConfigClient(url, user="me"))

    return start


@pytest.fixture
def rest(start_rest: Callable[..., RestService]) -> RestService:
    """The service as it is by default."""
    return start_rest()
