"""The services of `stddaq demo`: their configuration, free addresses, and their start and end."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stddaq.errors import StdDaqError
from stddaq.text import mismatch

if TYPE_CHECKING:
    from stddaq.config import DetectorConfig

PREFIX = "demo"
N_WRITERS = 2
# No packet is lost here, but on a busy machine the simulator may pause within an image.
UDP_OPTIONS = ("--idle-time", "5")
N_MODULES = 8
READY_TIMEOUT_S = 60.0
END_TIMEOUT_S = 15.0


class DemoError(StdDaqError):
    """The demonstration cannot run here, or one of its checks failed."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the services of one demo are reached; `page` and `stream` only with `--watch`."""

    driver: str
    page: str
    stream: str


def config_path_in(directory: Path) -> Path:
    return directory / f"{PREFIX}.json"


def free_addresses() -> Addresses:
    with contextlib.ExitStack() as probes:
        # All at once, so that they differ.
        sockets = [probes.enter_context(socket.socket()) for _ in range(3)]
        for probe in sockets:
            probe.bind(("127.0.0.1", 0))
        driver, page, stream = (f"127.0.0.1:{probe.getsockname()[1]}" for probe in sockets)
    return Addresses(f"ws://{driver}", f"http://{page}/", f"tcp://{stream}")


def write_config(
    directory: Path, side: int, udp: bool, watched: Addresses | None
) -> tuple[Path, DetectorConfig]:
    """Write the configuration; `watched`: with a page and a live stream at these addresses."""
    from stddaq.config import DetectorConfig

    content = {
        "detector_name": f"demo-{uuid.uuid4().hex[:8]}",
        "detector_type": "gigafrost",
        "n_modules": N_MODULES if udp else 1,
        "bit_depth": 16,
        "image_pixel_height": side,
        "image_pixel_width": side,
        "start_udp_port": _free_udp_ports() if udp else 2000,
        "module_positions": {},
        "number_of_writers": N_WRITERS,
        "stats_collection_period": 1 if udp else 10,
        # Of the demo, and of runs that its user starts to try it.
        "allowed_roots": [str(directory.resolve()), tempfile.gettempdir()],
    }
    if watched is not None:
        content["services"] = [f"stddaq-rest --port {_port_of(watched.page)}"]
        content["live_stream_configs"] = {watched.stream: {"type": "periodic", "config": [1, 10]}}
    path = config_path_in(directory)
    try:
        path.write_text(json.dumps(content, indent=2) + "\n")
    except OSError as error:
        raise DemoError(f"{path}: cannot be written: {error.strerror}") from error
    return path, DetectorConfig.load(path)


def _port_of(address: str) -> int:
    return int(address.rstrip("/").rpartition(":")[2])


def _free_udp_ports() -> int:
    """Return the first of `N_MODULES` consecutive UDP ports that are free now."""
    for first in random.sample(range(20000, 60000, N_MODULES), 100):
        with contextlib.ExitStack() as probes, contextlib.suppress(OSError):
            for port in range(first, first + N_MODULES):
                probe = probes.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                probe.bind(("0.0.0.0", port))
            return first
    raise DemoError(mismatch("UDP ports", f"{N_MODULES} consecutive ones that are free", "none"))


@contextlib.contextmanager
def deployment(
    directory: Path, config_path: Path, driver: str, rate: float | None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `stddaq up` with a driver at the url `driver`, and its output in demo.log.

    The simulator publishes images at `rate`; None: the detector sends packets.
    """
    up = ["up", str(config_path), "--port", str(_port_of(driver)), "-m"]
    up += (
        ["--source", "udp", *UDP_OPTIONS] if rate is None else ["--source", "simulate", "--rate", f"{rate:g}"]
    )
    log_path = directory / f"{PREFIX}.log"
    with running_command(up, log_path) as process:
        _wait_until_ready(process, log_path)
        yield process


@contextlib.contextmanager
def running_command(arguments: Sequence[str], log_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command of stddaq with an ipc directory of its own, and its output in a file."""
    from stddaq.daemon.parent_death import end_with_parent
    from stddaq.wire.default_addresses import IPC_DIRECTORY_VARIABLE, ipc_directory

    # Not in the demo's directory, because socket paths are limited to 107 bytes.
    ipc_parent = ipc_directory()
    with tempfile.TemporaryDirectory(prefix="stddaq-", dir=ipc_parent) as ipc, log_path.open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "stddaq", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, IPC_DIRECTORY_VARIABLE: ipc},
            # Ctrl-C first stops the recording; the services end after it.
            start_new_session=True,
            preexec_fn=end_with_parent(),  # noqa: PLW1509 - there is no other thread yet
        )
        try:
            yield process
        finally:
            _end(process)


def wait_for_subscriptions(directory: Path) -> None:
    """Wait until each receiver has its converter: frames before that would be lost."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    log_path = directory / f"{PREFIX}.log"
    subscribed = re.compile(r"module_id=(\d+),.*n_subscribers=[1-9]")
    while len(set(subscribed.findall(log_path.read_text(errors="replace")))) < N_MODULES:
        if time.monotonic() > deadline:
            raise DemoError(f"the converters have not subscribed to the receivers, see {log_path}")
        time.sleep(0.05)


def _wait_until_ready(process: subprocess.Popen[bytes], log_path: Path) -> None:
    print("starting simulator, driver, writers ...", flush=True)
    deadline = time.monotonic() + READY_TIMEOUT_S
    while "all services ready" not in log_path.read_text(errors="replace"):
        if process.poll() is not None or time.monotonic() > deadline:
            lines = log_path.read_text(errors="replace").strip().splitlines()
            raise DemoError(
                f"the services did not start, see {log_path}; last line: {lines[-1] if lines else ''}"
            )
        time.sleep(0.05)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
