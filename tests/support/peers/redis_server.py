"""A real Redis of Debian."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import RedisError
from support.processes.deployment import free_port, wait_until

from stddaq.closing import Closing


def redis_environment() -> dict[str, str]:
    """Return the variables with which `redis-server` is found and runs; skip the test without the program."""
    unpacked = Path(sys.prefix) / "redis"
    path = f"{unpacked / 'usr' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    if shutil.which("redis-server", path=path) is None:
        pytest.skip("needs the package redis-server of Debian or Ubuntu, see .ci/make-debian-packages")
    libraries = os.pathsep.join(map(str, unpacked.glob("usr/lib/*-linux-gnu*")))
    return {"PATH": path, "LD_LIBRARY_PATH": libraries}


class RedisServer(Closing):
    """A running Redis without files, at a port of its own.

    Attributes:
        address: `tcp://HOST:PORT`.
        client: a connection to it.
    """

    def __init__(self) -> None:
        """Start it; skip the test without the program."""
        self._env = os.environ | redis_environment()
        program = shutil.which("redis-server", path=self._env["PATH"])
        assert program is not None
        port = free_port()
        self.address = f"tcp://127.0.0.1:{port}"
        # As Debian's own unit, but without persistence.
        options = (
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "no",
            "--dir",
            "/",
            "--port",
            str(port),
        )
        self._command = [program, *options]
        self.client: Any = Redis(port=port, socket_timeout=20, protocol=2)
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start it again, empty."""
        self._process = subprocess.Popen(
            self._command, env=self._env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_until(self._is_ready, 60, "Redis")

    def _is_ready(self) -> bool:
        try:
            # Another test may have taken the port meanwhile.
            assert self._process is not None
            return self.client.info("server")["process_id"] == self._process.pid
        except (RedisError, OSError):
            return False

    def kill(self) -> None:
        """End it at once. What it has stored is lost."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(20)
            self._process = None

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Let it stand still in the block: it keeps what it has stored, and answers later."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        self.client.close()
        self.kill()
