"""What the camera receiver costs, beside a bare receive and copy of the same messages in the same run.

A camera process pushes the same bsread messages at a fixed rate to `std_bsread_recv` over four connections,
and then to a bare loop that receives them with pyzmq and copies the pixels into a ring of the same size.
Figures of shared machines wander: quote the ratios, take the median of several rounds.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import zmq

from stddaq.config import DetectorConfig
from stddaq.wire.bsread import Channel, Compression, MessageEncoder, encode_value
from stddaq.wire.endpoints import open_socket

SHAPES = {"a": (2016, 2016), "b": (528, 280), "c": (480, 128)}
RATES_HZ = {"a": 60.0, "b": 1500.0, "c": 3000.0}
CONNECTIONS = 4
N_SLOTS = 1000
TICKS = os.sysconf("SC_CLK_TCK")
START_TIMEOUT_S = 20.0


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print one line per shape."""
    parser = argparse.ArgumentParser(
        description="CPU of the camera receiver, beside a bare receive and copy."
    )
    parser.add_argument("--shapes", nargs="+", default=["a", "c"], choices=SHAPES)
    parser.add_argument("--compression", choices=("none", "lz4", "bitshuffle_lz4"), default="none")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement (default 2)")
    args = parser.parse_args(argv)
    print(f"{os.cpu_count()} cores, {CONNECTIONS} connections, median (min-max) of {args.rounds} rounds")
    print("shape           rate Hz | us/image: bare  receiver | ratio (min-max)")
    for name in args.shapes:
        rounds = [
            measure(SHAPES[name], RATES_HZ[name], args.seconds, args.compression) for _ in range(args.rounds)
        ]
        ratios = [receiver / bare for bare, receiver in rounds]
        bare, receiver = (statistics.median(figures) for figures in zip(*rounds, strict=True))
        height, width = SHAPES[name]
        print(
            f"{name:<4} {height:>4}x{width:<4} {RATES_HZ[name]:>8g} | {bare:>14.1f} {receiver:>9.1f}"
            f" | {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})",
            flush=True,
        )
    return 0


def measure(
    shape: tuple[int, int], rate: float, seconds: float, compression: Compression
) -> tuple[float, float]:
    """CPU in us per image of (bare loop, receiver)."""
    n_images = int(rate * seconds)
    with tempfile.TemporaryDirectory(prefix="sd-", dir="/tmp") as directory:
        os.environ["STDDAQ_IPC_DIR"] = directory
        address = f"tcp://127.0.0.1:{free_port()}"
        config, path = write_config(Path(directory), shape)
        camera = multiprocessing.get_context("spawn").Process(
            target=push, args=(address, shape, rate, n_images, compression)
        )
        camera.start()
        receiver = subprocess.Popen(
            [
                str(Path(sys.executable).with_name("std_bsread_recv")),
                "-n",
                str(CONNECTIONS),
                str(path),
                address,
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            used = cpu_of_receiver(receiver, n_images)
        finally:
            receiver.terminate()
            receiver.wait()
        bare = cpu_of_bare_loop(config, address, n_images)
        camera.join()
    return bare / n_images * 1e6, used / n_images * 1e6


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def write_config(directory: Path, shape: tuple[int, int]) -> tuple[DetectorConfig, Path]:
    """A detector whose ring is large enough for the measurement."""
    content = {
        "detector_name": f"bench{os.getpid()}",
        "detector_type": "pco",
        "n_modules": 1,
        "bit_depth": 16,
        "image_pixel_height": shape[0],
        "image_pixel_width": shape[1],
        "start_udp_port": 2000,
        "module_positions": {},
        "stats_collection_period": 1,
    }
    path = directory / "config.json"
    path.write_text(json.dumps(content))
    return DetectorConfig.parse(content), path


def push(address: str, shape: tuple[int, int], rate: float, n_images: int, compression: Compression) -> None:
    """The camera: twice a warm-up of all slots that are used, a pause, and the images to measure."""
    channel = Channel.of_image("BENCH", shape, np.dtype("<u2"), compression)
    encoder = MessageEncoder([channel])
    pixels = np.random.default_rng(0).poisson(20, shape).astype("<u2")
    value = encode_value(channel, pixels)
    with zmq.Context(io_threads=2) as context:
        camera = open_socket(context, zmq.PUSH)
        camera.sndhwm = max(4, 64 * 2**20 // pixels.nbytes)
        camera.bind(address)
        warm_up, measured = (0, used_slots(n_images), False), (N_SLOTS, n_images, True)
        for first, n, paced in (warm_up, measured, warm_up, measured):
            began = time.monotonic()
            for i in range(n):
                if paced and (ahead := began + i / rate - time.monotonic()) > 0:
                    time.sleep(ahead)
                now = time.time_ns()
                camera.send_multipart(encoder.message(first + i, *divmod(now, 10**9), [value]), copy=False)
            # Longer than two periods of the receiver's statistics, which say when all is received.
            time.sleep(2.5)
        camera.close()


def used_slots(n_images: int) -> int:
    """Images of the warm-up: every slot that the measurement uses has its memory then."""
    return min(N_SLOTS, n_images)


def cpu_of_receiver(receiver: subprocess.Popen[str], n_images: int) -> float:
    """Seconds of CPU from the end of the warm-up to the last image."""
    assert receiver.stdout is not None
    counts: list[int] = []
    before, line = 0.0, ""
    for line in receiver.stdout:
        if "processed_times=" not in line:
            continue
        count = int(line.split("processed_times=")[1].split(",")[0])
        if not count and sum(counts) and not before:
            before, counts = cpu(receiver.pid), []
        counts.append(count)
        if before and sum(counts) >= n_images:
            break
    assert ",n_late=0,n_repeated=0," in line, line
    return cpu(receiver.pid) - before


def cpu(pid: int) -> float:
    """Seconds of CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def cpu_of_bare_loop(config: DetectorConfig, address: str, n_images: int) -> float:
    """The same messages, received over as many connections and copied; seconds of CPU of this process."""
    ring = np.zeros((used_slots(n_images), config.image_bytes), np.uint8)
    ring[:] = 1
    with zmq.Context(io_threads=min(CONNECTIONS, os.cpu_count() or 1)) as context:
        bare = open_socket(context, zmq.PULL)
        for _ in range(CONNECTIONS):
            bare.connect(address)
        before = 0.0
        for i in range(len(ring) + n_images):
            if i == len(ring):
                before = time.process_time()
            part = bare.recv_multipart(copy=False)[2].buffer
            ring[i % len(ring), : len(part)] = part
        used = time.process_time() - before
        bare.close()
    return used


if __name__ == "__main__":
    sys.exit(main())
