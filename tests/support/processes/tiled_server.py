"""A tiled server as a process: `tiled serve catalog` stores documents of TiledWriter and serves images."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.processes.deployment import Service, console_script

from stddaq.closing import Closing

API_KEY = "secret"
# Its start takes 5 s of computing time.
START_TIMEOUT_S = 100.0


class TiledServer(Closing):
    """A server with a new catalog in `directory` that may read files below `readable`; a context manager."""

    def __init__(self, directory: Path, readable: Path, adapter: str | None = None) -> None:
        """`adapter` (module:class) replaces tiled's adapter of HDF5 files, by a configuration file."""
        command = [
            *(console_script("tiled"), "serve", "catalog", str(directory / "catalog.db"), "--init"),
            *("--read", str(readable), "--write", str(directory / "written")),
            *("--write", f"duckdb:///{directory / 'tables.db'}", "--api-key", API_KEY, "--port", "0"),
        ]
        if adapter is not None:
            (directory / "config.yml").write_text(_config(directory, readable, adapter))
            command = [console_script("tiled"), "serve", "config", str(directory / "config.yml")]
        # It logs to stderr.
        self.service = Service(["sh", "-c", 'exec "$@" 2>&1', "sh", *command], os.environ)
        try:
            self.url = self.service.wait_for_line(r"running on .*?(http://[\d.]+:\d+)", START_TIMEOUT_S)[1]
        except BaseException:
            self.service.kill()
            raise

    @contextmanager
    def client(self) -> Iterator[Any]:
        """Return a client of the catalog."""
        from tiled.client import from_uri

        client = from_uri(self.url, api_key=API_KEY)
        try:
            yield client
        finally:
            client.context.http_client.close()

    def close(self) -> None:
        if self.service.returncode is None:
            self.service.end(timeout=START_TIMEOUT_S)


def _config(directory: Path, readable: Path, adapter: str) -> str:
    """Return the configuration of the server that `tiled serve catalog` starts; JSON is YAML."""
    arguments = {
        "uri": str(directory / "catalog.db"),
        "init_if_not_exists": True,
        "readable_storage": [str(readable)],
        "writable_storage": [str(directory / "written"), f"duckdb:///{directory / 'tables.db'}"],
        "adapters_by_mimetype": {"application/x-hdf5": adapter},
    }
    return json.dumps(
        {
            "authentication": {"single_user_api_key": API_KEY},
            "uvicorn": {"port": 0},
            "trees": [{"path": "/", "tree": "catalog", "args": arguments}],
        }
    )
