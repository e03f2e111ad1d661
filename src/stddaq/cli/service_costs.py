"""What an image costs driver, writer, metadata writer and module synchroniser: the services themselves run.

The images are so small that their pixels cost nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zmq

from stddaq.client import AsyncDriverClient
from stddaq.config import DetectorConfig
from stddaq.dataplane.connections import open_socket
from stddaq.dataplane.endpoints import converted_frames, metadata_stream
from stddaq.dataplane.image_publisher import ImagePublisher
from stddaq.dataplane.metadata import ImageMetadata
from stddaq.errors import StdDaqError
from stddaq.text import mismatch
from stddaq.udp.frame_message import frame_layout
from stddaq.wire.default_addresses import IPC_DIRECTORY_VARIABLE

ROUNDS = 3
# A run of a second.
N_IMAGES, RATE_HZ = 5000, 5000.0
N_MODULES, N_SYNCHRONISED = 8, 5000
# Images whose messages wait in a queue at most.
BURST = 500
TIMEOUT_S = 60.0


class MeasurementError(StdDaqError, RuntimeError):
    """A service that is measured failed, or does not keep up."""


@dataclass(frozen=True, slots=True)
class ServiceCosts:
    """CPU microseconds of an image, and of one message of a module."""

    driver_us: float
    writer_us: float
    meta_us: float
    sync_us: float


def measure_services(directory: Path) -> ServiceCosts:
    """Measure the services, with files in `directory`, of which none remains. Raise `MeasurementError`."""
    with tempfile.TemporaryDirectory(prefix="stddaq-plan-", dir=directory) as files:
        with _configuration(files) as path:
            runs = asyncio.run(_record(path, files))
        with _configuration(files) as path:
            sync = _synchronise(path)
    driver, writer, meta = np.median(runs, axis=0).tolist()
    return ServiceCosts(driver, writer, meta, sync)


@contextlib.contextmanager
def _configuration(files: str) -> Iterator[Path]:
    """Write a configuration file; within the block, services and this process have sockets of their own."""
    before = os.environ.get(IPC_DIRECTORY_VARIABLE)
    with tempfile.TemporaryDirectory(prefix="sd-", dir="/tmp") as ipc:
        os.environ[IPC_DIRECTORY_VARIABLE] = ipc
        content = {
            "detector_name": f"plan-{uuid.uuid4().hex[:8]}",
            "detector_type": "gigafrost",
            "n_modules": N_MODULES,
            "bit_depth": 16,
            "image_pixel_height": 16,
            "image_pixel_width": 48,
            "start_udp_port": 2000,
            "module_positions": {},
            "number_of_writers": 1,
            "allowed_roots": [files],
        }
        path = Path(ipc) / "plan.json"
        path.write_text(json.dumps(content))
        try:
            yield path
        finally:
            os.environ.pop(IPC_DIRECTORY_VARIABLE)
            if before is not None:
                os.environ[IPC_DIRECTORY_VARIABLE] = before


async def _record(path: Path, files: str) -> np.ndarray:
    """Do some runs. Return a row for each: the costs of driver, writer and metadata writer."""
    config = DetectorConfig.load(path)
    with ImagePublisher(config) as publisher, contextlib.ExitStack() as running:
        started = [
            running.enter_context(_service(program, path, *arguments))
            for program, *arguments in (
                ("std_det_driver", "-p", "0", "-m"),
                ("std_det_writer", "0"),
                ("std_det_meta_writer_gf",),
            )
        ]
        url, costs = started[0][1], []
        processes = [process for process, _ in started]
        async with AsyncDriverClient(url) as client:
            for number in range(ROUNDS + 1):
                await client.start(files, n_image=N_IMAGES, file_prefix=f"r{number}")
                await client.wait({"waiting_for_first_image"}, timeout=TIMEOUT_S)
                before = [_cpu(process) for process in processes]
                await asyncio.to_thread(_announce, publisher, number * N_IMAGES)
                await client.wait_until_saved(timeout=TIMEOUT_S)
                costs.append([_cpu(p) - b for p, b in zip(processes, before, strict=True)])
    # In the first one, caches fill.
    return np.array(costs[1:]) / N_IMAGES * 1e6


def _announce(publisher: ImagePublisher, first_id: int) -> None:
    begin = time.perf_counter()
    for i in range(N_IMAGES):
        publisher.begin(first_id + i)
        publisher.commit(first_id + i)
        ahead = begin + (i + 1) / RATE_HZ - time.perf_counter()
        if ahead > 0.001:
            time.sleep(ahead)


def _synchronise(path: Path) -> float:
    """Return what the message of a module costs the synchroniser."""
    config = DetectorConfig.load(path)
    message = np.zeros((), frame_layout(config.detector_type))
    with _service("std_data_sync_module", path) as (process, _), zmq.Context() as context:
        stream, push = open_socket(context, zmq.SUB), open_socket(context, zmq.PUSH)
        stream.subscribe(b"")
        stream.connect(metadata_stream(config.detector_name, "image"))
        push.connect(converted_frames(config.detector_name))
        try:
            costs = []
            for number in range(ROUNDS + 1):
                before = _cpu(process)
                for image in range(N_SYNCHRONISED):
                    message["id"] = number * N_SYNCHRONISED + image
                    for module in range(N_MODULES):
                        message["module"] = module
                        push.send(message.tobytes())
                    if image % BURST == BURST - 1:
                        _wait_for(stream, int(message["id"]))
                costs.append(_cpu(process) - before)
        finally:
            push.close(linger=0)
            stream.close(linger=0)
    return float(np.median(costs[1:])) / (N_SYNCHRONISED * N_MODULES) * 1e6


def _wait_for(stream: zmq.Socket[bytes], image_id: int) -> None:
    """Wait until an image is announced. The first ones may be, before the subscription arrives."""
    while True:
        if not stream.poll(int(TIMEOUT_S * 1000)):
            expected = f"image {image_id} within {TIMEOUT_S:g} s"
            raise MeasurementError(mismatch("std_data_sync_module", expected, "none"))
        if ImageMetadata.FromString(stream.recv()).image_id >= image_id:
            return


@contextlib.contextmanager
def _service(program: str, path: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run a service. Yield it with the last word of its line that it is ready."""
    command = [str(Path(sys.executable).with_name(program)), str(path), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield process, _ready(program, process)
    finally:
        process.terminate()
        try:
            process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def _ready(program: str, process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = ""
    # Reading has no timeout of its own: a service that hangs is killed, which ends its output.
    deadline = threading.Timer(TIMEOUT_S, process.kill)
    deadline.start()
    try:
        for line in process.stdout:
            if "[event] ready" in line:
                return line.split()[-1]
    finally:
        deadline.cancel()
    raise MeasurementError(mismatch(program, "its start", line.strip() or "its end"))


def _cpu(process: subprocess.Popen[str]) -> float:
    """Return the CPU seconds of all threads of a process."""
    total = 0
    for thread in Path(f"/proc/{process.pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):
            total += int((thread / "schedstat").read_text().split()[0])
    return total / 1e9
