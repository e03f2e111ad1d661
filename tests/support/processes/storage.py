"""Storage that stops responding, or is slow, for one service."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event

from support.processes import blocked
from support.processes.deployment import Deployment, Service, wait_until


class Storage:
    """Storage of a service: one function of the service blocks."""

    def __init__(self, directory: Path) -> None:
        self._fifo = directory / "blocked"
        self._entered = directory / "blocked.entered"

    def start(self, deployment: Deployment, function: str, service: str, *args: object) -> Service:
        """Start a service in which `function` can block, and wait until it is ready."""
        program = [sys.executable, "-P", blocked.__file__, function, self._fifo, service]
        return deployment.run(*program, deployment.config_path, *args, ready="ready")

    def stop_responding(self) -> None:
        os.mkfifo(self._fifo)

    @contextmanager
    def stopping(self) -> Iterator[None]:
        """Let each call of the function stop its process during the block, until SIGCONT."""
        self._fifo.touch()
        yield
        self._fifo.unlink()

    def wait_for_a_call(self) -> None:
        """Wait until the service waits in the function."""
        wait_until(self._entered.exists, what="a call that blocks")

    def respond_slowly(self, n_calls: int, seconds: float, ended: Event | None = None) -> None:
        """Let as many calls last this long, after `stop_responding`; later ones do not block.

        At `ended` the current call is the last one that does.
        """
        ended = ended or Event()
        for n_left in reversed(range(n_calls)):
            self.wait_for_a_call()
            self._entered.unlink()
            is_last = ended.wait(seconds) or not n_left
            blocking = os.open(self._fifo, os.O_PATH)
            if is_last:
                self._fifo.unlink()
            Path(f"/proc/self/fd/{blocking}").write_bytes(b"")
            os.close(blocking)
            if is_last:
                return
