"""A driver, its writers and a source on a filled ring buffer, and their CPU cost.

The source announces images without touching their pixels, so that only the driver and the writers work. CPU
is the time that the scheduler has charged to all threads of a process, in nanoseconds. Freed memory is
touched before each measurement, because on virtual machines the first touch of a page can cost more than its
copy.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from stddaq.client import AsyncDriverClient
from stddaq.config import DetectorConfig
from stddaq.dataplane.image_publisher import ImagePublisher
from stddaq.dataplane.ring_buffer import RingBuffer

# GigaFRoST images, uint16. The last shape is so small that only the cost of control remains.
SHAPES = {"a": (2016, 2016), "b": (528, 280), "c": (480, 128), "d": (512, 512), "none": (16, 16)}
MEMORY = Path("/dev/shm")
START_TIMEOUT_S = 20.0
# The bare loop writes this number of images with one system call.
BARE_BATCH = 16
MEBIBYTE = 2**20


@dataclass(frozen=True, slots=True)
class Measured:
    """The cost of one run: CPU seconds per kind of service, and `elapsed_s` until all images are readable."""

    n_images: int
    driver: float
    writers: float
    meta: float
    elapsed_s: float
    account: dict[str, Any]

    @property
    def is_complete(self) -> bool:
        """Return whether every image is in the files."""
        return self.account["n_good"] == self.n_images


@dataclass(slots=True)
class Rig:
    """The services of one configuration; a context manager. `files` is the directory of the runs.

    Without `with_source` another source provides the images. `fields` are added to the configuration.
    """

    shape: str
    n_writers: int = 1
    directory: Path = MEMORY
    with_meta: bool = False
    suffix: str = "image"
    with_source: bool = True
    fields: dict[str, object] = field(default_factory=dict)
    files: Path = field(init=False)
    config: DetectorConfig = field(init=False)
    config_path: Path = field(init=False)
    publisher: ImagePublisher = field(init=False)
    url: str = field(init=False)
    _stack: ExitStack = field(init=False, default_factory=ExitStack)
    driver: subprocess.Popen[str] = field(init=False)
    writers: list[subprocess.Popen[str]] = field(init=False, default_factory=list)
    meta: list[subprocess.Popen[str]] = field(init=False, default_factory=list)

    def __enter__(self) -> Self:
        try:
            self._set_up()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _set_up(self) -> None:
        fields = self.fields | {"number_of_writers": self.n_writers}
        self.config_path = self._stack.enter_context(detector(self.shape, **fields))
        self.files = Path(tempfile.mkdtemp(prefix="stddaq-bench-", dir=self.directory))
        self._stack.callback(shutil.rmtree, self.files, ignore_errors=True)
        self.config = DetectorConfig.load(self.config_path)
        if self.with_source:
            self.publisher = self._stack.enter_context(ImagePublisher(self.config, self.suffix))
        suffix = ["-s", self.suffix]
        self.driver = self.start("std_det_driver", "-p", 0, *suffix, *(["-m"] if self.with_meta else []))
        self.writers = [self.start("std_det_writer", i, *suffix) for i in range(self.n_writers)]
        self.meta = [self.start("std_det_meta_writer_gf")] if self.with_meta else []
        self.url = wait_ready(self.driver)
        for process in (*self.writers, *self.meta):
            wait_ready(process)

    def start(self, service: str, *arguments: object) -> subprocess.Popen[str]:
        """Start a service of this configuration, which ends with the rig."""
        process = start(service, self.config_path, *arguments)
        self._stack.callback(end, process)
        return process

    def fill_ring(self, n_images: int) -> None:
        """Touch the slots that `n_images` use."""
        with RingBuffer(self.config, self.suffix) as ring:
            used = min(self.config.n_slots, n_images) * self.config.image_bytes
            np.frombuffer(ring.memory[:used], np.uint32)[:] = 0x01020304

    def clear(self, n_bytes: int) -> None:
        """Remove the files of earlier runs, and touch memory for `n_bytes` of new ones."""
        for file in self.files.iterdir():
            file.unlink()
        path = self.files / "warm"
        block = bytes(16 * MEBIBYTE)
        with path.open("wb", buffering=0) as file:
            for _ in range(-(-n_bytes // len(block))):
                file.write(block)
        path.unlink()

    def record(self, n_images: int, rate: float, first_id: int = 0) -> Measured:
        """Do one run of `n_images`, announced at `rate` per second."""
        return asyncio.run(self._record(n_images, rate, first_id))

    async def _record(self, n_images: int, rate: float, first_id: int) -> Measured:
        before = self._cpu()
        async with AsyncDriverClient(self.url) as client:
            await client.start(str(self.files), n_image=n_images, overwrite=True)
            if n_images:
                await client.wait({"waiting_for_first_image"}, timeout=10)
            begin = time.perf_counter()
            await asyncio.to_thread(self.announce, n_images, rate, first_id)
            await client.wait({"saving_file", "file_saved", "error", "idle"}, timeout=120)
            elapsed = time.perf_counter() - begin
            await client.wait_until_saved(timeout=120)
            account = await client.last_result()
        assert account is not None
        driver, writers, meta = (now - earlier for now, earlier in zip(self._cpu(), before, strict=True))
        return Measured(n_images, driver, writers, meta, elapsed, account)

    def announce(self, n_images: int, rate: float, first_id: int = 0) -> None:
        """Announce images at `rate`, in bursts of a millisecond."""
        for i in paced(n_images, rate):
            self.publisher.begin(first_id + i)
            self.publisher.commit(first_id + i)

    def _cpu(self) -> tuple[float, float, float]:
        return cpu([self.driver]), cpu(self.writers), cpu(self.meta)

    def bare_loop(self, n_images: int) -> tuple[float, float]:
        """Return CPU and elapsed seconds of a process that writes the same slots with `pwritev`."""
        path = self.files / "bare"
        with RingBuffer(self.config, self.suffix) as ring, path.open("wb", buffering=0) as file:
            size, fd = self.config.image_bytes, file.fileno()
            begin, begin_cpu = time.perf_counter(), time.process_time()
            for first in range(0, n_images, BARE_BATCH):
                slots = [ring.slot(i) for i in range(first, min(first + BARE_BATCH, n_images))]
                offset = first * size
                while slots:
                    written = os.pwritev(fd, slots, offset)
                    offset += written
                    slots = slots[written // size :]
            elapsed, used = time.perf_counter() - begin, time.process_time() - begin_cpu
        path.unlink()
        return used, elapsed


@contextlib.contextmanager
def detector(shape: str, **fields: object) -> Iterator[Path]:
    """Write a configuration file. Services that start in the block use a new ipc directory."""
    with tempfile.TemporaryDirectory(prefix="stddaq-", dir="/tmp") as ipc:
        os.environ["STDDAQ_IPC_DIR"] = ipc
        path = Path(ipc) / "bench.json"
        path.write_text(json.dumps(configuration(shape, **fields)), encoding="utf-8")
        yield path


def configuration(shape: str, **fields: object) -> dict[str, Any]:
    """Return the configuration of a GigaFRoST of one shape with a unique name; `fields` are added."""
    height, width = SHAPES[shape]
    return {
        # At 40 kHz the smallest ring, 1000 slots, would last 25 ms; a shared machine pauses for longer.
        "ram_buffer_gb": 1,
        "detector_name": f"bench{os.getpid()}-{time.time_ns() % 10**9}",
        "detector_type": "gigafrost",
        "n_modules": 1,
        "bit_depth": 16,
        "image_pixel_height": height,
        "image_pixel_width": width,
        "start_udp_port": 2000,
        "module_positions": {},
        "allowed_roots": ["/"],
        **fields,
    }


def start(service: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a console script of this environment."""
    command = [str(Path(sys.executable).with_name(service)), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def size_of(shape: str) -> str:
    """Return the name of a shape in the tables."""
    height, width = SHAPES[shape]
    return f"{shape}: {height}x{width}"


def wait_ready(process: subprocess.Popen[str]) -> str:
    """Read log lines until the service is ready. Return the last word of that line."""
    assert process.stdout is not None
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        line = process.stdout.readline()
        if "[event] ready" in line:
            return line.split()[-1]
        if not line:
            break
    raise SystemExit(f"{process.args} did not get ready")


def end(process: subprocess.Popen[str]) -> None:
    """Terminate a service."""
    process.terminate()
    try:
        process.communicate(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


def paced(n: int, rate: float) -> Iterator[int]:
    """Yield the numbers below `n` at `rate` per second, in bursts of a millisecond."""
    begin = time.perf_counter()
    for i in range(n):
        yield i
        ahead = begin + (i + 1) / rate - time.perf_counter()
        if ahead > 0.001:
            time.sleep(ahead)


def cpu(processes: Sequence[subprocess.Popen[str]]) -> float:
    """Return the CPU seconds of all threads of the processes."""
    total = 0
    for process in processes:
        for thread in Path(f"/proc/{process.pid}/task").iterdir():
            with contextlib.suppress(OSError):
                total += int((thread / "schedstat").read_text(encoding="ascii").split()[0])
    return total / 1e9
