"""CPU cost of a live stream, compared with a bare pyzmq send of the same bytes at the same rate.

One subscriber, in a process of its own, must receive every image; the source announces images that are in the
ring buffer already. The reference is a loop that sends header and slot through a PUB socket with the default
options of pyzmq.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import zmq
from rig import MEBIBYTE, cpu, detector, end, paced, size_of, start, wait_ready
from tables import Table, spread

from stddaq.config import DetectorConfig
from stddaq.dataplane.image_publisher import ImagePublisher
from stddaq.dataplane.ring_buffer import RingBuffer
from stddaq.wire.array10 import HeaderMaker

ROUNDS = 5
# Images of shape a are sent at a third of the loop's rate with a subscriber on the same two cores.
RATES_HZ = {"a": 40.0, "b": 1000.0, "c": 2000.0}
IDLE_RATE_HZ = 10_000.0
SECONDS = 2.0
# This part of the ring buffer is used repeatedly.
RING_BYTES = 128 * MEBIBYTE
SUBSCRIBE_TIMEOUT_S = 20.0
# Receives until no more images arrive, and prints their number.
SUBSCRIBER = """
import sys, zmq
context = zmq.Context()
socket = context.socket(zmq.SUB)
socket.rcvhwm = 100
socket.subscribe(b"")
socket.connect(sys.argv[1])
print("ready", flush=True)
n = 0
while socket.poll(20000 if n == 0 else 1000):
    socket.recv_multipart(copy=False)
    n += 1
print(n)
"""


def forwarding(rounds: int = ROUNDS) -> Table:
    """Measure a forwarding array-1.0 stream for the three shapes, with and without a subscriber."""
    table = Table(
        "live",
        "CPU of a live stream (forward, array-1.0)",
        f"Median (min-max) of {rounds} rounds of {SECONDS:g} s with one subscriber, compared with a bare "
        f"pyzmq loop that sends the same bytes at the same rate; and of as many rounds "
        f"without subscriber, at {IDLE_RATE_HZ:g} Hz. Targets: ratio 1.3, 5 us without subscriber.",
        ["shape", "rate Hz", "bare us/image", "stream us/image", "ratio", "without subscriber us/image"],
    )
    for shape, rate in RATES_HZ.items():
        with streaming(shape) as stream:
            idle = [stream.without_subscriber() for _ in range(rounds)]
            pairs = [(stream.bare(rate), stream.forward(rate)) for _ in range(rounds)]
        table.add(
            size_of(shape),
            rate,
            statistics.median(bare for bare, _ in pairs),
            statistics.median(ours for _, ours in pairs),
            spread([ours / bare for bare, ours in pairs]),
            spread(idle),
        )
    return table


class Streaming:
    """A live stream and a source on one ring buffer of images. All figures are us of CPU per image."""

    def __init__(
        self, config: DetectorConfig, publisher: ImagePublisher, service: subprocess.Popen[str]
    ) -> None:
        self._config, self._publisher, self._service = config, publisher, service
        self._endpoint = wait_ready(service)
        self._next_id = 0
        self._n_used = min(config.n_slots, RING_BYTES // config.image_bytes)
        if not publisher.wait_for_subscribers(1, SUBSCRIBE_TIMEOUT_S):
            raise SystemExit("the live stream does not subscribe")

    def without_subscriber(self) -> float:
        """Measure the cost of an image without a subscriber."""
        n_images = int(IDLE_RATE_HZ * SECONDS)
        before = cpu([self._service])
        self._announce(n_images, IDLE_RATE_HZ)
        return (cpu([self._service]) - before) / n_images * 1e6

    def forward(self, rate: float) -> float:
        """Measure the live stream with one subscriber."""
        n_images = int(rate * SECONDS)
        with _subscriber(self._endpoint, n_images):
            time.sleep(1.0)  # The first sent image shows that the subscriber is connected.
            before = cpu([self._service])
            self._announce(n_images, rate)
            time.sleep(0.3)
            used = cpu([self._service]) - before
        return used / n_images * 1e6

    def _announce(self, n_images: int, rate: float) -> None:
        """Announce images in filled slots, without touching their pixels."""
        n_used, n_slots = self._n_used, self._config.n_slots
        for i in paced(n_images, rate):
            image_id = self._next_id + i // n_used * n_slots + i % n_used
            self._publisher.begin(image_id)
            self._publisher.commit(image_id)
        self._next_id += (n_images // n_used + 1) * n_slots

    def bare(self, rate: float) -> float:
        """Measure the loop with one subscriber, including all threads of its process."""
        n_images = int(rate * SECONDS)
        headers = HeaderMaker(self._config.image_shape, self._config.pixel_type)
        with zmq.Context() as context, RingBuffer(self._config, "image") as ring:
            socket = context.socket(zmq.XPUB)
            socket.linger = 0
            port = socket.bind_to_random_port("tcp://127.0.0.1")
            with _subscriber(f"tcp://127.0.0.1:{port}", n_images):
                socket.recv()
                for slot in range(self._n_used):
                    ring.slot(slot)[0]  # Touch a new mapping; the service has done so already.
                begin = time.process_time()
                for i in paced(n_images, rate):
                    socket.send_multipart([headers.header(i), ring.slot(i % self._n_used)])
                time.sleep(0.3)
                used = time.process_time() - begin
            socket.close()
        return used / n_images * 1e6


@contextmanager
def streaming(shape: str) -> Iterator[Streaming]:
    setting = {"type": "forward", "config": []}
    with detector(shape, live_stream_configs={"tcp://127.0.0.1:0": setting}) as path:
        config = DetectorConfig.load(path)
        with ImagePublisher(config) as publisher, RingBuffer(config, "image") as ring:
            used = min(config.n_slots * config.image_bytes, RING_BYTES)
            np.frombuffer(ring.memory[:used], np.uint32)[:] = 0x01020304
            service = start("std_live_stream", path, *config.live_stream_configs)
            try:
                yield Streaming(config, publisher, service)
            finally:
                end(service)


@contextmanager
def _subscriber(address: str, n_images: int) -> Iterator[None]:
    """Start a process that receives, and check at the end that it received every image."""
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
