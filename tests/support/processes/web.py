"""The HTTP service as a real process, with requests to it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import requests
from support.processes.deployment import Deployment, Service
from websockets.sync.client import ClientConnection

from stddaq.client import ConfigClient
from stddaq.wire.default_addresses import TOKEN_VARIABLE, URL_VARIABLE


def json_message(socket: ClientConnection) -> dict[str, Any]:
    """Return the next JSON object that is no sign of life."""
    while True:
        message = socket.recv(timeout=60)
        if isinstance(message, str) and (content := json.loads(message)) != {"alive": True}:
            return content


@dataclass(frozen=True)
class RestService:
    """A running `stddaq-rest`, which uses files below the directory `root`."""

    deployment: Deployment
    process: Service
    url: str
    root: Path
    client: ConfigClient

    @classmethod
    def start(cls, deployment: Deployment, root: Path, *args: object) -> Self:
        """Create the directory `root`, start the service, and wait until it is ready.

        Without a token it lets all users of this machine control.
        """
        root.mkdir(exist_ok=True)
        has_token = "--token-file" in args or TOKEN_VARIABLE in deployment.env
        rights = () if has_token else ("--allow-control",)
        return cls.start_as_it_is(deployment, root, *rights, *args)

    @classmethod
    def start_as_it_is(cls, deployment: Deployment, root: Path, *args: object) -> Self:
        """Start the service with these options and wait until it is ready."""
        # By default it would connect to any driver that runs on this machine.
        has_url = "--url" in args or URL_VARIABLE in deployment.env
        driver = () if has_url else ("--url", "ws://127.0.0.1:9")
        process = deployment.start("stddaq-rest", "--port", 0, "--root", root, *driver, *args, ready=None)
        url = process.wait_for_line(r"ready: listening on (https?://\S+)")[1]
        return cls(deployment, process, url, root, ConfigClient(url, user="me"))

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
        """Return the previous versions of the configuration file, oldest first."""
        path = self.deployment.config_path
        return sorted(path.with_name(f"{path.name}.history").glob("*"))

    def config_on_disk(self) -> dict[str, Any]:
        return json.loads(self.deployment.config_path.read_text())
