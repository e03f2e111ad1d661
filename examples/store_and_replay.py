"""Store simulated images in an image buffer, replay them, and compare every pixel.

It starts all that it needs, a Redis included, at free ports and with names of its own, and ends it:

    python examples/store_and_replay.py

It needs a `redis-server` and `pip install 'stddaq[buffer]'`; `make demo-buffer` installs the second.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import zmq
from websockets.exceptions import WebSocketException
from websockets.sync.client import ClientConnection, connect

from stddaq.client.image_buffer import ImageBuffer, ImageBufferError
from stddaq.config import DetectorConfig
from stddaq.sources.simulated.scenes import Scene
from stddaq.wire.array10 import decode

SIDE = 256
TIMEOUT_S = 60


def main() -> None:
    parser = argparse.ArgumentParser(description="Store images in an image buffer, and replay them.")
    parser.add_argument("-n", "--n-images", type=int, default=500)
    parser.add_argument("--rate", type=float, default=200.0, help="Hz, of both directions (default: 200)")
    args = parser.parse_args()
    redis = shutil.which("redis-server")
    if redis is None:
        sys.exit("needs redis-server: apt install redis-server")
    with tempfile.TemporaryDirectory(prefix="sd-") as path, contextlib.ExitStack() as services:
        directory = Path(path)
        os.environ["STDDAQ_IPC_DIR"] = path
        database, driver, stream = (f"127.0.0.1:{port}" for port in free_ports(3))
        camera, replayed = write_configs(directory)
        config = DetectorConfig.load(camera)
        buffer = ("--root_dir", path, "--db_address", f"tcp://{database}")

        print(f"storing {args.n_images} images of {SIDE}x{SIDE} pixels, {args.rate:g} per second", flush=True)
        where = ("--bind", "127.0.0.1", "--port", database.rpartition(":")[2], "--dir", path)
        services.enter_context(running(redis, *where, "--save", ""))
        services.enter_context(running(script("std_buffer_writer"), *buffer, camera))
        source = ("--rate", args.rate, "--n-images", args.n_images, "--wait-for-subscribers", 1)
        services.enter_context(
            running(script("stddaq"), "simulate", camera, *source, "--wait-timeout", TIMEOUT_S)
        )
        wait_until_stored(path, f"tcp://{database}", config.detector_name, args.n_images)

        print(f"replaying them to {stream}", flush=True)
        services.enter_context(running(script("std_buffer_reader"), *buffer, replayed))
        services.enter_context(
            running(
                *(script("std_buffer_driver"), "--stream_address", f"tcp://{stream}"),
                *("--port", driver.rpartition(":")[2], replayed),
            )
        )
        replay_and_compare(f"ws://{driver}", f"tcp://{stream}", config, args.n_images, args.rate)
    print(f"{args.n_images} images stored and replayed, every pixel compared, 0 differ")


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as probes:
        sockets = [probes.enter_context(socket.socket()) for _ in range(count)]
        for probe in sockets:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in sockets]


def write_configs(directory: Path) -> tuple[Path, Path]:
    """Write the configurations of the camera, and of the detector that its replay is."""
    name = f"buffer-{uuid.uuid4().hex[:8]}"
    config = {
        "detector_type": "gigafrost",
        "n_modules": 1,
        "bit_depth": 16,
        "image_pixel_height": SIDE,
        "image_pixel_width": SIDE,
        "start_udp_port": 2000,
        "module_positions": {},
        "number_of_writers": 1,
    }
    paths = []
    for detector in (name, f"REPLAY-{name}"):
        path = directory / f"{detector}.json"
        path.write_text(json.dumps({"detector_name": detector, **config}))
        paths.append(path)
    return paths[0], paths[1]


def script(name: str) -> Path:
    """Return a program of the environment of this interpreter."""
    return Path(sys.executable).with_name(name)


@contextlib.contextmanager
def running(*command: object) -> Iterator[None]:
    """Run a program until the end of the block; show its output if it fails."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen([str(word) for word in command], stdout=log, stderr=subprocess.STDOUT)
        try:
            yield
        finally:
            process.terminate()
            if process.wait(TIMEOUT_S) not in (0, -15):
                log.seek(0)
                print(f"{command[0]} has failed:\n{log.read()}", file=sys.stderr)


def wait_until_stored(root: str, database: str, camera: str, n_images: int) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    n_stored = 0
    while n_stored < n_images:
        if time.monotonic() > deadline:
            sys.exit(f"{n_stored} of {n_images} images are stored")
        time.sleep(0.2)
        # The database needs a moment to start.
        with contextlib.suppress(ImageBufferError), ImageBuffer(root, database, camera) as images:
            n_stored = len(images.ids())


def replay_and_compare(url: str, stream: str, config: DetectorConfig, n_images: int, rate: float) -> None:
    """Replay the images to this process, and compare each with what was simulated."""
    scene = Scene.of(config, "rings")
    with zmq.Context() as context, context.socket(zmq.PULL) as consumer, connected(url) as driver:
        consumer.connect(stream)
        start = {"command": "start", "start_image_id": 0, "end_image_id": n_images - 1, "rate": rate}
        driver.send(json.dumps(start))
        for image_id in range(n_images):
            if not consumer.poll(TIMEOUT_S * 1000):
                sys.exit(f"image {image_id} was not replayed; the driver says: {driver.recv(timeout=1)}")
            image = decode(consumer.recv_multipart())
            if image.image_id != image_id or not np.array_equal(image.pixels, scene.image(image_id)):
                sys.exit(f"image {image.image_id} differs from image {image_id}, which was stored")


def connected(url: str) -> ClientConnection:
    """Return a connection to the driver, once it listens."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        try:
            return connect(url)
        except (OSError, WebSocketException):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


if __name__ == "__main__":
    main()
