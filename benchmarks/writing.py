"""What the writing path costs, beside its limit measured in the same run: `make bench`.

Real services and sockets; the source announces images that already lie in the ring buffer, so that only the
driver and the writers work. The limit is a bare loop that `pwritev`s the same bytes from the same ring buffer
into the same file system. Figures of shared machines wander: quote the ratios, take the median of several
rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stddaq.acquisition.publisher import ImagePublisher
from stddaq.client import AsyncDriverClient
from stddaq.config import DetectorConfig
from stddaq.wire.ring_buffer import RingBuffer

# Of a GigaFRoST, uint16; the last is next to nothing, so that what remains is the cost of control.
SHAPES = {"a": (2016, 2016), "b": (528, 280), "c": (480, 128), "none": (16, 16)}
# Rates that every writer keeps up with on two shared cores; CPU per image is compared at equal rates.
RATES_HZ = {"a": 60.0, "b": 2000.0, "c": 4000.0, "none": 10_000.0}
BYTES_PER_ROUND = 600 * 2**20
HEADING = (
    "shape           writers  rate Hz | CPU s/GB: bare  writers      ratio (min-max)"
    " | us/image: writers  driver"
)
START_TIMEOUT_S = 20.0
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Round:
    """CPU seconds of one run of `n_images`."""

    n_images: int
    bare: float
    writers: float
    driver: float


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print one line per shape and number of writers."""
    parser = argparse.ArgumentParser(description="CPU of the writing path, beside a bare pwritev loop.")
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=SHAPES, help="default all")
    parser.add_argument("--writers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rate", type=float, help="images/s (default 60, 2000, 4000 for a, b, c)")
    parser.add_argument("--directory", type=Path, default=Path("/dev/shm"), help="where the files go")
    args = parser.parse_args(argv)
    print(f"{os.cpu_count()} cores, files in {args.directory}, median (min-max) of {args.rounds} rounds")
    print(HEADING)
    for name in args.shapes:
        for n_writers in args.writers:
            with _deployment(SHAPES[name], n_writers, args.directory) as deployment:
                rate = args.rate or RATES_HZ[name]
                rounds = [deployment.measure(rate) for _ in range(args.rounds + 1)][1:]
            _print(name, n_writers, rate, rounds)
    return 0


def _print(name: str, n_writers: int, rate: float, rounds: list[Round]) -> None:
    height, width = SHAPES[name]
    gigabytes = [r.n_images * height * width * 2 / 1e9 for r in rounds]
    bare = [r.bare / gb for r, gb in zip(rounds, gigabytes, strict=True)]
    writers = [r.writers / gb for r, gb in zip(rounds, gigabytes, strict=True)]
    ratios = [w / b for w, b in zip(writers, bare, strict=True)]
    each = [r.writers / r.n_images * 1e6 for r in rounds]
    driver = [r.driver / r.n_images * 1e6 for r in rounds]
    print(
        f"{name:<4} {height:>4}x{width:<4} {n_writers:>9} {rate:>8g} |"
        f" {statistics.median(bare):>14.3f} {statistics.median(writers):>8.3f}"
        f" {statistics.median(ratios):>10.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        f" | {statistics.median(each):>17.1f} {statistics.median(driver):>7.1f}",
        flush=True,
    )


class Deployment:
    """A driver, its writers and a source over one ring buffer of images that are there already."""

    def __init__(
        self, config: DetectorConfig, path: Path, directory: Path, publisher: ImagePublisher
    ) -> None:
        self._config, self._directory, self._publisher = config, directory, publisher
        self._n_images = min(BYTES_PER_ROUND // config.image_bytes, 40_000)
        with RingBuffer(config, "image") as ring:
            used = min(config.n_slots, self._n_images) * config.image_bytes
            np.frombuffer(ring.memory[:used], np.uint32)[:] = 0x01020304
        self._driver = _start(["std_det_driver", str(path), "-p", "0"])
        self._writers = [
            _start(["std_det_writer", str(path), str(i)]) for i in range(config.number_of_writers)
        ]
        self._url = _wait_ready(self._driver)
        for writer in self._writers:
            _wait_ready(writer)

    def measure(self, rate: float) -> Round:
        """One run, and the bare loop over the same bytes."""
        bare = self._bare_loop()
        # Freeing the pages of the files of the round before is nobody's cost here.
        for file in self._directory.glob("*.h5"):
            file.unlink()
        driver, writers = _cpu(self._driver), sum(map(_cpu, self._writers))
        asyncio.run(self._run(rate))
        return Round(
            self._n_images, bare, sum(map(_cpu, self._writers)) - writers, _cpu(self._driver) - driver
        )

    async def _run(self, rate: float) -> None:
        async with AsyncDriverClient(self._url) as client:
            await client.start(str(self._directory), n_image=self._n_images)
            await client.wait({"waiting_for_first_image"}, timeout=10)
            await asyncio.to_thread(self._announce, rate)
            await client.wait_until_saved(timeout=120)
            result = await client.last_result()
        if not result or result["n_good"] != self._n_images:
            counts = {key: value for key, value in (result or {}).items() if key.startswith("n_")}
            raise SystemExit(f"the machine does not keep up, measure at a lower --rate: {counts}")

    def _announce(self, rate: float) -> None:
        """Announce images at `rate`, in bursts of a millisecond, without touching their pixels."""
        publisher, begin = self._publisher, time.perf_counter()
        for i in range(self._n_images):
            publisher.begin(i)
            publisher.commit(i)
            ahead = begin + i / rate - time.perf_counter()
            if ahead > 0.001:
                time.sleep(ahead)

    def _bare_loop(self) -> float:
        """CPU seconds of a process that writes the same slots, sixteen in one `pwritev`."""
        path = self._directory / "bare"
        path.unlink(missing_ok=True)
        with RingBuffer(self._config, "image") as ring, path.open("wb", buffering=0) as file:
            size, fd = self._config.image_bytes, file.fileno()
            begin = time.process_time()
            for first in range(0, self._n_images, 16):
                slots = [ring.slot(i) for i in range(first, min(first + 16, self._n_images))]
                offset = first * size
                while slots:
                    written = os.pwritev(fd, slots, offset)
                    offset += written
                    slots = slots[written // size :]
            elapsed = time.process_time() - begin
        path.unlink()
        return elapsed

    def close(self) -> None:
        """End the services."""
        for process in (*self._writers, self._driver):
            process.terminate()
        for process in (*self._writers, self._driver):
            process.communicate(timeout=10)


@contextmanager
def _deployment(shape: tuple[int, int], n_writers: int, where: Path) -> Iterator[Deployment]:
    with ExitStack() as stack:
        ipc = tempfile.mkdtemp(prefix="stddaq-", dir="/tmp")
        stack.callback(shutil.rmtree, ipc, ignore_errors=True)
        os.environ["STDDAQ_IPC_DIR"] = ipc
        directory = Path(tempfile.mkdtemp(prefix="stddaq-bench-", dir=where))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        content = {
            "detector_name": f"bench{os.getpid()}",
            "detector_type": "gigafrost",
            "n_modules": 1,
            "bit_depth": 16,
            "image_pixel_height": shape[0],
            "image_pixel_width": shape[1],
            "start_udp_port": 2000,
            "module_positions": {},
            "number_of_writers": n_writers,
        }
        path = directory / "bench.json"
        path.write_text(json.dumps(content), encoding="utf-8")
        config = DetectorConfig.load(path)
        publisher = stack.enter_context(ImagePublisher(config))
        deployment = Deployment(config, path, directory, publisher)
        stack.callback(deployment.close)
        yield deployment


def _start(command: list[str]) -> subprocess.Popen[str]:
    command[0] = str(Path(sys.executable).with_name(command[0]))
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _wait_ready(process: subprocess.Popen[str]) -> str:
    """Read log lines until the service is ready. Returns the last word of that line."""
    assert process.stdout is not None
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        line = process.stdout.readline()
        if "[event] ready" in line:
            return line.split()[-1]
        if not line:
            break
    raise SystemExit(f"{process.args} did not get ready")


def _cpu(process: subprocess.Popen[str]) -> float:
    """CPU seconds that a process has used, all its threads."""
    fields = Path(f"/proc/{process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


if __name__ == "__main__":
    sys.exit(main())
