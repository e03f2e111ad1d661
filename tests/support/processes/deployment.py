"""Services as real processes: start one, wait for a line, terminate it, and check that nothing remains.

A `Deployment` is one detector with a name, a configuration file and an ipc directory of its own, so that
tests can run in parallel. The fixture `deployment` provides it.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from support.processes import tolerant_driver
from support.processes.preloaded import PreloadedProcess, is_forkable

SHM_DIRECTORY = Path("/dev/shm")
# Limits of waits that decide nothing: on a busy machine any process may stand still for seconds.
START_TIMEOUT_S = 60.0
END_TIMEOUT_S = 60.0
WAIT_TIMEOUT_S = 60.0
# After the end of a process whose child still has its pipes.
OUTPUT_TIMEOUT_S = 10.0


def wait_until(
    condition: Callable[[], Any],
    timeout: float = WAIT_TIMEOUT_S,
    what: str = "the condition",
    period: float = 0.01,
) -> Any:
    """Call `condition` until it returns a true value, and return that. Fail after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        result = condition()
        if result:
            return result
        assert time.monotonic() < deadline, f"timeout after {timeout} s: {what}"
        time.sleep(period)


def ports_for_services() -> range:
    """Return the ports that the kernel does not choose itself, for port 0 or for the end that connects.

    It would give a port that was found free to any other process, before the service binds it.
    """
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    return max(range(10_000, first), range(last + 1, 65_536), key=len)


def free_port() -> int:
    """Return a TCP port of the loopback interface that is free now."""
    # Not that of hypothesis and of forks, which is the same in several processes.
    choose = random.SystemRandom().choice
    while True:
        port = choose(ports_for_services())
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


def make_config(**overrides: Any) -> dict[str, Any]:
    """Return a small, complete configuration with a unique detector name; None removes a key."""
    config = {
        "detector_name": f"t{uuid.uuid4().hex[:10]}",
        "detector_type": "gigafrost",
        "n_modules": 1,
        "bit_depth": 16,
        "image_pixel_height": 32,
        "image_pixel_width": 48,
        "start_udp_port": 2000,
        "module_positions": {},
        "number_of_writers": 2,
        # With small blocks a few small images fill several chunks.
        "gpfs_block_size": 16384,
        "stats_collection_period": 1,
        # Services that run as root demand a root.
        "allowed_roots": ["/"],
    }
    config.update(overrides)
    return {key: value for key, value in config.items() if value is not None}


class Service:
    """A process whose output is collected: `stdout` and `stderr` hold the lines so far."""

    def __init__(
        self, command: list[str], env: Mapping[str, str], cwd: Path | None = None, preloaded: bool = True
    ) -> None:
        """Start `command`. If `preloaded` and it `is_forkable`, it is a fork of a prepared process."""
        self.command = command
        self.stdout: list[str] = []
        self.stderr: list[str] = []
        self._news = threading.Condition()
        self._is_reading = threading.Event()
        self._is_reading.set()
        self.process = _start(command, env, cwd, preloaded)
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self._readers = [
            threading.Thread(target=self._collect, args=(pipe, lines), daemon=True)
            for pipe, lines in ((self.process.stdout, self.stdout), (self.process.stderr, self.stderr))
        ]
        for reader in self._readers:
            reader.start()

    def _collect(self, pipe: IO[str], lines: list[str]) -> None:
        with pipe:
            for line in pipe:
                self._is_reading.wait()
                with self._news:
                    lines.append(line.rstrip("\n"))
                    self._news.notify_all()
        with self._news:
            self._news.notify_all()

    def pause_reading(self) -> None:
        """Stop reading the output, so that its pipes fill, until `continue_reading`."""
        self._is_reading.clear()

    def continue_reading(self) -> None:
        self._is_reading.set()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def returncode(self) -> int | None:
        """Return the exit code, which is negative for a signal, or None while the process runs."""
        return self.process.poll()

    @property
    def output(self) -> str:
        """Return all lines so far, for messages."""
        return "\n".join(["$ " + " ".join(self.command), *self.stdout, *("! " + e for e in self.stderr)])

    def wait_for_line(self, pattern: str, timeout: float = START_TIMEOUT_S, start: int = 0) -> re.Match[str]:
        """Return the first match of the regular expression `pattern` in `stdout`, from line `start` on.

        Fail when none appears within `timeout` seconds, or the process exits without one.
        """
        deadline = time.monotonic() + timeout
        with self._news:
            while True:
                while start < len(self.stdout):
                    if match := re.search(pattern, self.stdout[start]):
                        return match
                    start += 1
                ended = not self._readers[0].is_alive() or self.process.poll() is not None
                remaining = deadline - time.monotonic()
                if (ended and not self._readers[0].is_alive()) or remaining <= 0:
                    why = f"ended with {self.process.poll()}" if ended else f"ran {timeout} s"
                    raise AssertionError(f"no line matches {pattern!r}; the process {why}:\n{self.output}")
                self._news.wait(min(remaining, 0.1))

    def wait_for_count(self, name: str, total: int) -> None:
        """Wait until the statistics lines count `total`: a period may end between two of the counted."""

        def count() -> int:
            return sum(int(n) for line in self.stdout[:] for n in re.findall(rf"\b{name}=(\d+)", line))

        wait_until(lambda: count() >= total, what=f"{name}, {total} in all")
        assert count() == total

    def wait(self, timeout: float = END_TIMEOUT_S) -> int:
        """Wait for the process to exit by itself. Return its exit code. Fail after `timeout` seconds."""
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still runs after {timeout} s:\n{self.output}") from None
        for reader in self._readers:
            reader.join(OUTPUT_TIMEOUT_S)
        return code

    def succeed(self, timeout: float = END_TIMEOUT_S) -> None:
        """Wait for the process to exit by itself, with code 0."""
        assert self.wait(timeout) == 0, self.output

    def send(self, signal_number: int) -> None:
        """Send a signal if the process still runs."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal_number)

    def end(self, signal_number: int = signal.SIGTERM, timeout: float = END_TIMEOUT_S) -> int:
        """Send SIGTERM and return the exit code. Fail when the process does not exit in time."""
        self.send(signal_number)
        return self.wait(timeout)

    def kill(self) -> None:
        """Send SIGKILL and wait. The deployment then removes segments and sockets that remain."""
        self.send(signal.SIGKILL)
        self.wait()


class Deployment:
    """One detector: its configuration, its ipc directory, and the services started for it."""

    def __init__(
        self,
        directory: Path,
        *,
        user: int | None = None,
        preloaded: bool = True,
        env: Mapping[str, str] | None = None,
        ipc_directory: Path | None = None,
        **overrides: Any,
    ) -> None:
        """Write the configuration into `directory`; `overrides` as for `make_config`.

        Several deployments may share an `ipc_directory`, which exists and stays; by default it has its own.

        Services run as the uid `user`, which needs root, or by default as the caller. Services that are not
        `preloaded` share no memory with each other. `env` is added to their environment.
        """
        self.config = make_config(**overrides)
        self.detector_name: str = self.config["detector_name"]
        self._user, self._preloaded = user, preloaded
        # Paths of sockets are limited to 107 bytes; those of pytest's directories are longer.
        self._shares_directory = ipc_directory is not None
        self.ipc_directory = ipc_directory or Path(tempfile.mkdtemp(prefix="sd-", dir="/tmp"))
        self.config_path = directory / f"{self.detector_name}.json"
        if user is not None:
            # Other users have no access to pytest's directories.
            self.ipc_directory.chmod(0o777)
            self.config_path = self.ipc_directory.with_suffix(".json")
        self.write_config()
        self.env = {
            **os.environ,
            "STDDAQ_IPC_DIR": str(self.ipc_directory),
            "PYTHONUNBUFFERED": "1",
            # Services do no linear algebra, but starting its threads takes a fifth of their start time.
            "OPENBLAS_NUM_THREADS": "1",
            **(env or {}),
        }
        self.services: list[Service] = []

    @property
    def stddaq(self) -> str:
        """Return the path of the command `stddaq`, for `run`."""
        return console_script("stddaq")

    def write_config(self, **changes: Any) -> Path:
        """Rewrite the configuration file with changed keys. Return its path."""
        self.config.update(changes)
        new = self.config_path.with_suffix(".new")
        new.write_text(json.dumps(self.config, indent=2))
        new.chmod(0o644)
        # At once: services that look for changes would read a part of it.
        return new.replace(self.config_path)

    def start(self, service: str, *args: object, ready: str | None = r"ready") -> Service:
        """Start a service with this deployment's configuration as its first argument.

        `service` is a console script (`std_det_driver`). Wait for a line that matches `ready`, unless None.
        """
        command: list[object] = [console_script(service)]
        if self._user is not None:
            command = [sys.executable, "-P", Path(__file__).with_name("as_user.py"), self._user, service]
        return self.run(*command, self.config_path, *args, ready=ready)

    def run(self, *command: object, ready: str | None = None, cwd: Path | None = None) -> Service:
        """Start any command in the environment of this deployment."""
        started = Service([str(part) for part in command], self.env, cwd, self._preloaded)
        self.services.append(started)
        if ready is not None:
            started.wait_for_line(ready)
        return started

    def start_driver(self, *args: object, tolerant: bool = False) -> tuple[Service, str]:
        """Start the driver on a free port. Return it and its WebSocket url.

        If `tolerant`, it keeps writers that the test has stopped.
        """
        if tolerant:
            driver = self.run(
                sys.executable, "-P", tolerant_driver.__file__, self.config_path, "--port", 0, *args
            )
        else:
            driver = self.start("std_det_driver", "--port", 0, *args, ready=None)
        return driver, driver.wait_for_line(r"ready: listening on (ws://\S+)")[1]

    def start_up(self, *args: object, ready: str | None = "all services ready") -> Service:
        """Start `stddaq up`, which lets its services stand still for as long as a busy machine needs."""
        program = Path(__file__).with_name("patient_up.py")
        command = (sys.executable, "-P", program, "up", self.config_path)
        return self.run(*command, *args, ready=ready)

    def start_writers(self) -> list[Service]:
        """Start all writers of the configuration, and wait until they are ready."""
        writers = [
            self.start("std_det_writer", i, ready=None) for i in range(self.config["number_of_writers"])
        ]
        for writer in writers:
            writer.wait_for_line("ready")
        return writers

    def segments(self) -> list[str]:
        """Return the names of the detector's shared-memory segments."""
        return sorted(path.name for path in SHM_DIRECTORY.glob(f"{self.detector_name}*"))

    def sockets(self) -> list[str]:
        """Return the names of the files in the ipc directory; the directory of metrics pages is none."""
        return sorted(path.name for path in self._in_ipc_directory() if path != self.pages)

    def _in_ipc_directory(self) -> list[Path]:
        pattern = f"{self.detector_name}*" if self._shares_directory else "*"
        return list(self.ipc_directory.glob(pattern))

    @property
    def pages(self) -> Path:
        """Return the directory of the metrics pages, which running services and crashed ones have."""
        return self.ipc_directory / f"{self.detector_name}.metrics"

    def remove_leftovers(self) -> None:
        """Remove the segments and sockets of services that a test killed without `Service.kill`."""
        for name in self.segments():
            (SHM_DIRECTORY / name).unlink(missing_ok=True)
        for path in self._in_ipc_directory():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """Terminate all services, later ones first, and check that they exit with 0 and leave nothing behind.

        After a SIGKILL, segments and sockets may be left behind; they are removed here.
        """
        running = [service for service in reversed(self.services) if service.returncode is None]
        killed = any(service.returncode == -signal.SIGKILL for service in self.services)
        complaints = []
        try:
            for service in running:
                service.send(signal.SIGCONT)
                service.send(signal.SIGTERM)
            for service in running:
                try:
                    code = service.wait()
                except AssertionError as error:
                    service.kill()
                    complaints.append(str(error))
                else:
                    if code != 0:
                        complaints.append(f"exit code {code} after SIGTERM:\n{service.output}")
            if not killed:
                complaints += [f"left behind: {SHM_DIRECTORY / name}" for name in self.segments()]
                complaints += [f"left behind: {self.ipc_directory / name}" for name in self.sockets()]
            if self.pages.exists() and not any(service.returncode for service in self.services):
                complaints += [f"left behind: {page}" for page in self.pages.iterdir()]
        finally:
            self.remove_leftovers()
            if not self._shares_directory:
                shutil.rmtree(self.ipc_directory, ignore_errors=True)
            self.config_path.unlink(missing_ok=True)
        assert not complaints, "\n".join(complaints)


def _start(
    command: list[str], env: Mapping[str, str], cwd: Path | None, preloaded: bool
) -> subprocess.Popen[str] | PreloadedProcess:
    if preloaded and is_forkable(command):
        return PreloadedProcess(command, env, cwd)
    return subprocess.Popen(
        command,
        env=dict(env),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        bufsize=1,
    )


def console_script(name: str) -> str:
    """Return the path of a console script of this environment."""
    path = Path(sys.executable).parent / name
    assert path.exists(), f"{path}: missing; install the package into this environment"
    return str(path)
