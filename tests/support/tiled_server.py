"""A tiled server as a process: `tiled serve catalog` takes documents from TiledWriter, and serves images."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.processes import Service, console_script

API_KEY = "secret"


class TiledServer:
    """A catalog of its own in `directory`, that may read files below `readable`."""

    def __init__(self, directory: Path, readable: Path) -> None:
        command = [
            *(console_script("tiled"), "serve", "catalog", str(directory / "catalog.db"), "--init"),
            *("--read", str(readable), "--write", str(directory / "written")),
            *("--write", f"duckdb:///{directory / 'tables.db'}", "--api-key", API_KEY, "--port", "0"),
        ]
        # It logs to stderr.
        self.service = Service(["sh", "-c", 'exec "$@" 2>&1', "sh", *command], os.environ)
        self.url = self.service.wait_for_line(r"running on .*?(http://[\d.]+:\d+)")[1]

    @contextmanager
    def client(self) -> Iterator[Any]:
        """A client of the catalog."""
        from tiled.client import from_uri

        client = from_uri(self.url, api_key=API_KEY)
        try:
            yield client
        finally:
            client.context.http_client.close()

    def end(self) -> None:
        """End the server."""
        self.service.end()
