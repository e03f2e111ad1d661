"""Random harm to services, shared memory, sockets and files during a run."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import zmq
from support.chaos.services import ChaosServices
from support.processes.deployment import SHM_DIRECTORY, Service

from stddaq.closing import Closing

# How long harm lasts at most.
HARM_S = 1.2
# Harm that is listed twice is chosen twice as often.
HARM = (
    *("kill", "kill", "term", "hang up", "stop", "stop", "late driver"),
    *("remove ring", "rename ring", "remove cursor", "remove socket"),
    *("remove raw file", "rename raw file", "rename directory", "fill"),
    *("disorder", "disorder", "slow viewer", "vanishing client", "full log"),
)
SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "hang up": signal.SIGHUP}
# Seconds after the start of a run, name, action.
Step = tuple[float, str, Callable[[], None]]


@dataclass(slots=True)
class HarmedRun:
    """A run and what was done to it.

    Attributes:
        directory: where its files are written.
        has_harmed_files: whether files were removed or renamed.
        filled: services whose writes fail, and their limit before.
        paused: services whose log is not read.
    """

    directory: Path
    has_harmed_files: bool = False
    filled: list[tuple[Service, int]] = field(default_factory=list)
    paused: list[Service] = field(default_factory=list)

    def release(self) -> None:
        """Let services write files and log lines again."""
        for service, hard in self.filled:
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(service.pid, resource.RLIMIT_FSIZE, (hard, hard))
        for service in self.paused:
            service.continue_reading()


class Harm(Closing):
    """Plans harm to the services of an episode, and does it."""

    def __init__(self, services: ChaosServices, chance: random.Random, quiet: tuple[str, ...]) -> None:
        """Harm whose name is in `quiet` is left out."""
        self._services, self._random, self._quiet = services, chance, quiet
        self._context = zmq.Context()
        self._slow_viewers: list[zmq.Socket] = []

    def plan(self, run: HarmedRun) -> list[Step]:
        """Return the harm to a run, in the order of time."""
        names = list(self._services.running)
        plan: list[Step] = []
        for _ in range(self._random.randint(1, 3)):
            at, name = self._random.uniform(0, HARM_S), self._random.choice(names)
            after = at + self._random.uniform(0.02, HARM_S)
            plan += self._steps(self._random.choice(HARM), name, at, after, run)
        return sorted((step for step in plan if step[1] not in self._quiet), key=lambda step: step[0])

    def _steps(self, kind: str, name: str, at: float, after: float, run: HarmedRun) -> list[Step]:
        """Return the steps of one harm, to service `name` if it harms a service."""
        services = self._services
        if kind in SIGNALS:
            steps: list[Step] = [(at, kind, lambda: services.end(name, SIGNALS[kind]))]
            if self._random.random() < 0.5:
                steps.append((after, kind, lambda: services.restart(name)))
            return steps
        if kind == "stop":
            steps = [(at, kind, lambda: services.stop(name))]
            if self._random.random() < 0.7:
                steps.append((after, kind, lambda: services.go_on(name)))
            return steps
        if kind == "late driver":
            return [
                (at, kind, lambda: services.end("driver", signal.SIGTERM)),
                (after, kind, lambda: services.restart("driver")),
            ]
        if kind == "fill":
            writer = f"writer {self._random.randrange(services.n_writers)}"
            return [(at, kind, lambda: self._fill(writer, run))]
        if kind == "disorder":
            return [(0.0, kind, lambda: services.order(0.05))]
        actions: dict[str, Callable[[], None]] = {
            "remove ring": lambda: self._remove_segment(is_cursor=False),
            "remove cursor": lambda: self._remove_segment(is_cursor=True),
            "rename ring": self._rename_ring,
            "remove socket": self._remove_socket,
            "remove raw file": lambda: self._remove_raw_file(run),
            "rename raw file": lambda: self._rename_raw_file(run),
            "rename directory": lambda: self._rename_directory(run),
            "slow viewer": self._slow_viewer,
            "vanishing client": services.close_client,
            "full log": lambda: self._fill_log(name, run),
        }
        return [(at, kind, actions[kind])]

    # Shared memory and sockets.

    def _remove_segment(self, *, is_cursor: bool) -> None:
        if path := self._segment(is_cursor):
            path.unlink(missing_ok=True)

    def _rename_ring(self) -> None:
        if path := self._segment(is_cursor=False):
            with contextlib.suppress(FileNotFoundError):
                path.rename(path.with_name(f"{path.name}-renamed"))

    def _segment(self, is_cursor: bool) -> Path | None:
        segments = self._services.deployment.segments()
        names = [name for name in segments if name.endswith("-cursor") == is_cursor]
        return SHM_DIRECTORY / self._random.choice(names) if names else None

    def _remove_socket(self) -> None:
        deployment = self._services.deployment
        if names := deployment.sockets():
            (deployment.ipc_directory / self._random.choice(names)).unlink(missing_ok=True)

    # Files.

    def _remove_raw_file(self, run: HarmedRun) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._raw_file(run).unlink()
            run.has_harmed_files = True

    def _rename_raw_file(self, run: HarmedRun) -> None:
        with contextlib.suppress(FileNotFoundError):
            path = self._raw_file(run)
            path.rename(path.with_name("renamed.h5"))
            run.has_harmed_files = True

    def _raw_file(self, run: HarmedRun) -> Path:
        return run.directory / f"file{self._random.randrange(self._services.n_writers)}.h5"

    def _rename_directory(self, run: HarmedRun) -> None:
        with contextlib.suppress(FileNotFoundError):
            run.directory.rename(run.directory.with_name(f"{run.directory.name}-renamed"))
            run.has_harmed_files = True

    def _fill(self, name: str, run: HarmedRun) -> None:
        """Make the writes of a service beyond a file size fail, as on a full file system."""
        service = self._services.running[name]
        with contextlib.suppress(ProcessLookupError):
            _, hard = resource.prlimit(service.pid, resource.RLIMIT_FSIZE)
            resource.prlimit(service.pid, resource.RLIMIT_FSIZE, (40_000, hard))
            run.filled.append((service, hard))

    # Peers that do not read.

    def _slow_viewer(self) -> None:
        socket = self._context.socket(zmq.SUB)
        socket.rcvhwm = 1
        socket.subscribe(b"")
        socket.connect(self._services.live_stream_address)
        self._slow_viewers.append(socket)

    def _fill_log(self, name: str, run: HarmedRun) -> None:
        """Stop reading the log of a service, and fill its pipe."""
        service = self._services.running[name]
        service.pause_reading()
        run.paused.append(service)
        with contextlib.suppress(OSError):
            pipe = os.open(f"/proc/{service.pid}/fd/1", os.O_WRONLY | os.O_NONBLOCK)
            try:
                for _ in range(10_000):
                    os.write(pipe, b"\n" * 512)
            finally:
                os.close(pipe)

    def close(self) -> None:
        self._context.destroy(linger=0)
