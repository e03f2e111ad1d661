"""What a live stream costs, beside a bare pyzmq send of the same bytes in the same run.

Real services and sockets, one subscriber in a process of its own; the source announces images that already
lie in the ring buffer. The limit is a loop that sends header and slot with a plain PUB socket, as pyzmq does
it by default, at the same rate. Figures of shared machines wander: quote the ratios.
"""

from __future__ import annotations

import argparse
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
from pathlib import Path

import numpy as np
import zmq

from stddaq.acquisition.publisher import ImagePublisher
from stddaq.config import DetectorConfig
from stddaq.wire.array10 import HeaderMaker
from stddaq.wire.ring_buffer import RingBuffer

SHAPES = {"a": (2016, 2016), "b": (528, 280), "c": (480, 128)}
RATES_HZ = {"a": 40.0, "b": 1000.0, "c": 2000.0}
IDLE_RATE_HZ = 10_000.0
SECONDS_PER_ROUND = 2.0
START_TIMEOUT_S = 20.0
TICKS = os.sysconf("SC_CLK_TCK")
# Receives until nothing comes any more, and says how many images that were.
SUBSCRIBER = """
import sys, zmq
context = zmq.Context()
socket = context.socket(zmq.SUB)
socket.rcvhwm = 100
socket.subscribe(b"")
socket.connect(sys.argv[1])
print("ready", flush=True)
n = 0
while socket.poll(20000 if n == 0 else 1500):
    socket.recv_multipart(copy=False)
    n += 1
print(n)
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print one line per shape."""
    parser = argparse.ArgumentParser(description="CPU of a live stream, beside a bare pyzmq send.")
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=SHAPES, help="default all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rate", type=float, help="images/s (default 40, 1000, 2000 for a, b, c)")
    args = parser.parse_args(argv)
    print(f"{os.cpu_count()} cores, median (min-max) of {args.rounds} rounds, forward, array-1.0")
    print(
        "shape         rate Hz | us/image: bare   stream      ratio (min-max) | nobody subscribed: us/image"
    )
    for name in args.shapes:
        rate = args.rate or RATES_HZ[name]
        with _deployment(SHAPES[name]) as deployment:
            idle = deployment.idle()
            rounds = [deployment.measure(rate) for _ in range(args.rounds)]
        ratios = [stream / bare for bare, stream in rounds]
        height, width = SHAPES[name]
        print(
            f"{name} {height:>4}x{width:<4} {rate:>10g} |"
            f" {statistics.median(bare for bare, _ in rounds):>14.1f}"
            f" {statistics.median(stream for _, stream in rounds):>8.1f}"
            f" {statistics.median(ratios):>10.2f} ({min(ratios):.2f}-{max(ratios):.2f}) |"
            f" {idle:>10.2f} at {IDLE_RATE_HZ:g} Hz",
            flush=True,
        )
    return 0


class Deployment:
    """A live stream and a source over one ring buffer of images that are there already."""

    def __init__(self, config: DetectorConfig, path: Path, publisher: ImagePublisher) -> None:
        self._config, self._publisher = config, publisher
        self._next_id = 0
        self._ring = RingBuffer(config, "image")
        self._n_used = min(config.n_slots, 128 * 2**20 // config.image_bytes)
        for image_id in range(self._n_used):
            np.frombuffer(self._ring.slot(image_id), np.uint32)[:] = 0x01020304
        (address,) = config.live_stream_configs
        self._service = subprocess.Popen(
            [str(Path(sys.executable).with_name("std_live_stream")), str(path), address],
            stdout=subprocess.PIPE,
            text=True,
        )
        self._endpoint = _wait_ready(self._service)
        if not publisher.wait_for_subscribers(1, START_TIMEOUT_S):
            raise SystemExit("the live stream does not subscribe")

    def idle(self) -> float:
        """us of CPU per image while nobody is subscribed."""
        n_images = int(IDLE_RATE_HZ * SECONDS_PER_ROUND)
        before = _cpu(self._service.pid)
        self._announce(n_images, IDLE_RATE_HZ)
        return (_cpu(self._service.pid) - before) / n_images * 1e6

    def measure(self, rate: float) -> tuple[float, float]:
        """us of CPU per image of the bare loop, and of the live stream."""
        n_images = int(rate * SECONDS_PER_ROUND)
        bare = self._bare(n_images, rate)
        with _subscriber(self._endpoint, n_images):
            # Whether somebody is there shows in what the stream sends.
            time.sleep(1.0)
            before = _cpu(self._service.pid)
            self._announce(n_images, rate)
            time.sleep(0.3)
            stream = _cpu(self._service.pid) - before
        return bare / n_images * 1e6, stream / n_images * 1e6

    def _announce(self, n_images: int, rate: float) -> None:
        """Announce images at `rate`, in bursts of a millisecond, without touching their pixels."""
        publisher, n_used, n_slots = self._publisher, self._n_used, self._config.n_slots
        for i in _paced(n_images, rate):
            # Over slots that have been filled only.
            image_id = self._next_id + i // n_used * n_slots + i % n_used
            publisher.begin(image_id)
            publisher.commit(image_id)
        self._next_id += (n_images // n_used + 1) * n_slots

    def _bare(self, n_images: int, rate: float) -> float:
        """CPU seconds of a process, all its threads, that sends the same bytes to one subscriber."""
        headers = HeaderMaker(self._config.image_shape, self._config.dtype)
        context = zmq.Context()
        socket = context.socket(zmq.XPUB)
        port = socket.bind_to_random_port("tcp://127.0.0.1")
        with _subscriber(f"tcp://127.0.0.1:{port}", n_images):
            socket.recv()
            begin = time.process_time()
            for i in _paced(n_images, rate):
                socket.send_multipart([headers.header(i), self._ring.slot(i % self._n_used)])
            time.sleep(0.3)
            elapsed = time.process_time() - begin
        context.destroy(linger=0)
        return elapsed

    def close(self) -> None:
        """End the service."""
        self._service.terminate()
        self._service.communicate(timeout=10)
        self._ring.close()


def _paced(n_images: int, rate: float) -> Iterator[int]:
    begin = time.perf_counter()
    for i in range(n_images):
        yield i
        ahead = begin + i / rate - time.perf_counter()
        if ahead > 0.001:
            time.sleep(ahead)


@contextmanager
def _subscriber(address: str, n_images: int) -> Iterator[None]:
    """A process that receives; it must have received every image in the end."""
    process = subprocess.Popen([sys.executable, "-c", SUBSCRIBER, address], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    try:
        yield
        received = int(process.communicate(timeout=30)[0])
    finally:
        process.kill()
        process.wait()
    if received != n_images:
        raise SystemExit(f"the machine does not keep up: {received} of {n_images} images came")


@contextmanager
def _deployment(shape: tuple[int, int]) -> Iterator[Deployment]:
    with ExitStack() as stack:
        ipc = tempfile.mkdtemp(prefix="stddaq-", dir="/tmp")
        stack.callback(shutil.rmtree, ipc, ignore_errors=True)
        os.environ["STDDAQ_IPC_DIR"] = ipc
        content = {
            "detector_name": f"bench{os.getpid()}",
            "detector_type": "gigafrost",
            "n_modules": 1,
            "bit_depth": 16,
            "image_pixel_height": shape[0],
            "image_pixel_width": shape[1],
            "start_udp_port": 2000,
            "module_positions": {},
            "live_stream_configs": {"tcp://127.0.0.1:0": {"type": "forward", "config": []}},
        }
        path = Path(ipc) / "bench.json"
        path.write_text(json.dumps(content), encoding="utf-8")
        config = DetectorConfig.load(path)
        publisher = stack.enter_context(ImagePublisher(config))
        deployment = Deployment(config, path, publisher)
        stack.callback(deployment.close)
        yield deployment


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


def _cpu(pid: int) -> float:
    """CPU seconds that a process has used, all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


if __name__ == "__main__":
    sys.exit(main())
