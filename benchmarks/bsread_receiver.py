"""CPU cost of the camera receiver, compared with a bare receive and copy of the same messages.

A camera process pushes the same bsread messages at a fixed rate, alternately to `std_bsread_recv` and to a
loop that receives them with pyzmq and copies the pixels into a ring. Both use four connections.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import zmq
from rig import MEBIBYTE, SHAPES, cpu, detector, end, paced, size_of, start, wait_ready
from tables import Table, spread

from stddaq.config import DetectorConfig
from stddaq.dataplane.connections import open_socket
from stddaq.dataplane.endpoints import metadata_stream
from stddaq.dataplane.metadata import ImageMetadata
from stddaq.dataplane.ring_buffer import RingBuffer
from stddaq.wire.bsread import Channel, MessageEncoder, encode_value

ROUNDS = 5
RATES_HZ = {"a": 60.0, "b": 1500.0, "c": 3000.0}
CONNECTIONS = 4
SECONDS = 1.5
TIMEOUT_S = 30.0


def receiving(rounds: int = ROUNDS) -> Table:
    """Measure the receiver and the bare loop for the three shapes."""
    table = Table(
        "receiver",
        f"CPU of the camera receiver ({CONNECTIONS} connections, uncompressed bsread)",
        f"Median (min-max) of {rounds} rounds of {SECONDS:g} s, compared with a pyzmq loop that receives "
        "the same messages over as many connections and copies their pixels. Target for the ratio: 1.5. In "
        "the last column a subscriber also receives the metadata of each image.",
        ["shape", "rate Hz", "bare us/image", "receiver us/image", "ratio", "with a subscriber us/image"],
    )
    for shape, rate in RATES_HZ.items():
        with _camera(shape) as camera, _receiver(shape, camera) as receiver, _bare_loop(camera) as bare:
            pairs = [(bare.measure(rate), receiver.measure(rate)) for _ in range(rounds + 1)][1:]
            followed = [receiver.measure_followed(rate) for _ in range(rounds)]
        table.add(
            size_of(shape),
            rate,
            statistics.median(bare for bare, _ in pairs),
            statistics.median(ours for _, ours in pairs),
            spread([ours / bare for bare, ours in pairs]),
            statistics.median(followed),
        )
    return table


class _Camera:
    """A process that pushes `n` messages to one of two addresses on request."""

    def __init__(self, shape: str, pipe: Connection) -> None:
        self.image_bytes = SHAPES[shape][0] * SHAPES[shape][1] * 2
        self._pipe = pipe
        self.addresses: list[str] = pipe.recv()
        self.id_step = 1
        self._next_id = [0, 0]

    def push(self, address: int, n_images: int, rate: float) -> None:
        """Start to push images to the address with the given number."""
        self._pipe.send((address, self._next_id[address], n_images, rate))
        # Ids restart, so that images use slots whose memory is allocated already.
        self._next_id[address] += -(-n_images // self.id_step) * self.id_step


@contextmanager
def _camera(shape: str) -> Iterator[_Camera]:
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_push_when_asked, args=(theirs, SHAPES[shape]), daemon=True)
    process.start()
    try:
        yield _Camera(shape, ours)
    finally:
        ours.send(None)
        process.join(TIMEOUT_S)


def _push_when_asked(pipe: Connection, shape: tuple[int, int]) -> None:
    """Run the camera's process."""
    channel = Channel.of_image("BENCH", shape, np.dtype("<u2"), "none")
    encoder = MessageEncoder([channel])
    value = encode_value(channel, np.random.default_rng(0).poisson(20, shape).astype("<u2"))
    with zmq.Context(io_threads=2) as context:
        sockets = [open_socket(context, zmq.PUSH) for _ in range(2)]
        for camera in sockets:
            camera.sndhwm = max(4, 64 * MEBIBYTE // len(value))
        pipe.send([f"tcp://127.0.0.1:{camera.bind_to_random_port('tcp://127.0.0.1')}" for camera in sockets])
        while asked := pipe.recv():
            address, first_id, n_images, rate = asked
            for i in paced(n_images, rate):
                message = encoder.message(first_id + i, *divmod(time.time_ns(), 10**9), [value])
                sockets[address].send_multipart(message, copy=False)
        for camera in sockets:
            camera.close()


class _Receiver:
    """The service; its ring buffer shows its progress."""

    def __init__(
        self, camera: _Camera, process: subprocess.Popen[str], ring: RingBuffer, stream: str
    ) -> None:
        self._camera, self._process, self._ring, self._stream = camera, process, ring, stream

    def measure(self, rate: float) -> float:
        """Return us of CPU per image."""
        n_images = int(rate * SECONDS)
        before, complete = cpu([self._process]), self._ring.sequence + n_images
        self._camera.push(0, n_images, rate)
        deadline = time.monotonic() + TIMEOUT_S
        while self._ring.sequence < complete:
            if time.monotonic() > deadline:
                raise SystemExit("the receiver lost images")
            time.sleep(0.01)
        return (cpu([self._process]) - before) / n_images * 1e6

    def measure_followed(self, rate: float) -> float:
        """Measure with a subscriber to its metadata, like the driver."""
        with zmq.Context() as context:
            subscriber = open_socket(context, zmq.SUB)
            subscriber.subscribe(b"")
            subscriber.connect(self._stream)
            time.sleep(0.3)
            used = self.measure(rate)
            last_id = -1
            for _ in range(int(rate * SECONDS)):
                if not subscriber.poll(int(TIMEOUT_S * 1000)):
                    raise SystemExit("the receiver did not announce all images")
                image_id = ImageMetadata.FromString(subscriber.recv()).image_id
                if image_id <= last_id:
                    raise SystemExit(f"image {image_id} came after {last_id}")
                last_id = image_id
            subscriber.close()
        return used


@contextmanager
def _receiver(shape: str, camera: _Camera) -> Iterator[_Receiver]:
    with detector(shape, detector_type="pco") as path:
        config = DetectorConfig.load(path)
        process = start("std_bsread_recv", "-n", CONNECTIONS, path, camera.addresses[0])
        try:
            wait_ready(process)
            with RingBuffer(config, "image") as ring:
                camera.id_step = config.n_slots
                yield _Receiver(camera, process, ring, metadata_stream(config.detector_name, "image"))
        finally:
            end(process)


class _BareLoop:
    """Receives and copies in this process."""

    def __init__(self, camera: _Camera, pull: zmq.Socket[bytes], ring: np.ndarray) -> None:
        self._camera, self._pull, self._ring = camera, pull, ring

    def measure(self, rate: float) -> float:
        """Return us of CPU per image."""
        n_images, ring, receive = int(rate * SECONDS), self._ring, self._pull.recv_multipart
        begin = time.process_time()
        self._camera.push(1, n_images, rate)
        for i in range(n_images):
            part: Any = receive(copy=False)[2]
            ring[i % len(ring), : len(part)] = part.buffer
        return (time.process_time() - begin) / n_images * 1e6


@contextmanager
def _bare_loop(camera: _Camera) -> Iterator[_BareLoop]:
    with zmq.Context(io_threads=min(CONNECTIONS, os.cpu_count() or 1)) as context:
        pull = open_socket(context, zmq.PULL)
        for _ in range(CONNECTIONS):
            pull.connect(camera.addresses[1])
        ring = np.ones((max(1, 512 * MEBIBYTE // camera.image_bytes), camera.image_bytes), np.uint8)
        yield _BareLoop(camera, pull, ring)
        pull.close()
