"""The least that the chain of a detector can be: its processes and its sockets, without any rule.

There is one process for each receiver and converter, and one for the synchroniser. They receive all packets
of a frame, copy its pixels once, count the modules, and pass 64 bytes on. No loss is noticed.
"""

from __future__ import annotations

import multiprocessing
import select
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import zmq

from stddaq.config import DetectorConfig
from stddaq.dataplane.connections import open_socket
from stddaq.dataplane.endpoints import metadata_stream
from stddaq.udp.batch_socket import BatchSocket
from stddaq.udp.frame_message import FRAME_MESSAGE_BYTES
from stddaq.udp.geometry import frame_bytes
from stddaq.udp.packets import packets_of

START_TIMEOUT_S = 60.0
CONVERTED = "converted"


@contextmanager
def bare_chain(path: Path) -> Iterator[None]:
    """Run the processes of a detector in the block. They announce an image by 64 bytes on its stream."""
    # New interpreters would import all benchmarks first, in each process.
    config, fork = DetectorConfig.load(path), multiprocessing.get_context("fork")
    works = [(work, module) for work in (_receive, _convert) for module in range(config.n_modules)]
    started = fork.Barrier(len(works) + 2)
    processes = [
        fork.Process(target=work, args=(path, number, started), daemon=True)
        for work, number in (*works, (_synchronise, config.n_modules))
    ]
    for process in processes:
        process.start()
    try:
        started.wait(START_TIMEOUT_S)
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


def _receive(path: Path, module: int, started: Barrier) -> None:
    config = DetectorConfig.load(path)
    packets = packets_of(config, module)
    socket = BatchSocket(("127.0.0.1", config.start_udp_port + module), packets.header, packets.payload_bytes)
    frames = open_socket(zmq.Context(), zmq.PUB)
    frames.bind(metadata_stream(config.detector_name, str(module)))
    poller = select.poll()
    poller.register(socket, select.POLLIN)
    started.wait(START_TIMEOUT_S)
    n_received, message = 0, bytes(FRAME_MESSAGE_BYTES)
    while poller.poll():
        n_received += socket.receive()
        while n_received >= packets.n_packets:
            n_received -= packets.n_packets
            frames.send(message)


def _convert(path: Path, module: int, started: Barrier) -> None:
    config, context = DetectorConfig.load(path), zmq.Context()
    frames = open_socket(context, zmq.SUB)
    frames.subscribe(b"")
    frames.connect(metadata_stream(config.detector_name, str(module)))
    converted = open_socket(context, zmq.PUSH)
    converted.connect(metadata_stream(config.detector_name, CONVERTED))
    frame, image = (np.ones(frame_bytes(config), np.uint8) for _ in range(2))
    started.wait(START_TIMEOUT_S)
    while True:
        message = frames.recv()
        np.copyto(image, frame)
        converted.send(message)


def _synchronise(path: Path, n_modules: int, started: Barrier) -> None:
    config, context = DetectorConfig.load(path), zmq.Context()
    converted = open_socket(context, zmq.PULL)
    converted.bind(metadata_stream(config.detector_name, CONVERTED))
    images = open_socket(context, zmq.PUB)
    images.bind(metadata_stream(config.detector_name, "image"))
    started.wait(START_TIMEOUT_S)
    while True:
        *_, last = [converted.recv() for _ in range(n_modules)]
        images.send(last)
