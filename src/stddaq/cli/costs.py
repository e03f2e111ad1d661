"""What images and packets cost on this machine: measured in a few seconds, and kept in a file."""

from __future__ import annotations

import os
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import zmq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stddaq.cli.service_costs import measure_services
from stddaq.config.model import parse_json
from stddaq.errors import ConfigError
from stddaq.text import mismatch
from stddaq.udp.geometry import JUNGFRAU_PAYLOAD_BYTES
from stddaq.validation import explain

ROUNDS = 5
# More than the caches hold, so that pixels come from memory as those of a ring buffer do.
COPIED_BYTES = 64 * 2**20
_PIECE_BYTES = 8 * 2**20
MESSAGES = 2000
MESSAGE_BYTES = 80
PACKETS = 200
PARTS, PART_BYTES = 64, 2**20


class Costs(BaseModel):
    """CPU seconds of single operations on one core.

    Attributes:
        write_s_per_gb: writing pixels from memory into a file, without waiting for the storage.
        copy_s_per_gb: copying pixels in memory.
        message_us: sending and receiving an announcement.
        packet_us: receiving a UDP packet.
        network_s_per_gb: sending pixels to another server, or receiving them, without the copy.
        driver_us, writer_us, meta_us: an image, beside its pixels, in the service itself.
        sync_us: the message of a module in the synchroniser.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    write_s_per_gb: float = Field(gt=0)
    copy_s_per_gb: float = Field(gt=0)
    message_us: float = Field(gt=0)
    packet_us: float = Field(gt=0)
    network_s_per_gb: float = Field(gt=0)
    driver_us: float = Field(gt=0)
    writer_us: float = Field(gt=0)
    meta_us: float = Field(gt=0)
    sync_us: float = Field(gt=0)

    @classmethod
    def load(cls, path: Path) -> Costs:
        """Read a file of `save`. Raise `ConfigError`."""
        try:
            return cls.model_validate(parse_json(path.read_bytes()))
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
        except ValidationError as error:
            mistakes = [explain(single, "costs") for single in error.errors()]
            raise ConfigError(f"{path}: {'; '.join(mistakes)}", mistakes) from error

    def save(self, path: Path) -> None:
        """Write a file that `load` reads."""
        path.write_text(self.model_dump_json(indent=2) + "\n")


def measure(directory: Path) -> Costs:
    """Measure the costs, with files in `directory`, of which none remains."""
    services = measure_services(directory)
    return Costs(
        write_s_per_gb=_median(lambda: _write(directory)) / COPIED_BYTES * 1e9,
        copy_s_per_gb=_median(_copy) / COPIED_BYTES * 1e9,
        message_us=_median(_messages) / MESSAGES * 1e6,
        packet_us=_median(_packets) / PACKETS * 1e6,
        # Both ends are in this process.
        network_s_per_gb=_median(_network) / 2 / (PARTS * PART_BYTES) * 1e9,
        driver_us=services.driver_us,
        writer_us=services.writer_us,
        meta_us=services.meta_us,
        sync_us=services.sync_us,
    )


def _median(measurement: Callable[[], float]) -> float:
    return statistics.median(measurement() for _ in range(ROUNDS))


def _write(directory: Path) -> float:
    pixels = memoryview(bytes(COPIED_BYTES))
    try:
        with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
            begin = time.process_time()
            for start in range(0, COPIED_BYTES, _PIECE_BYTES):
                os.pwrite(file.fileno(), pixels[start : start + _PIECE_BYTES], start)
            return time.process_time() - begin
    except OSError as error:
        where = f"{directory}"
        raise ConfigError(mismatch(where, "a directory for files", error.strerror or str(error))) from error


def _copy() -> float:
    source, target = np.ones(COPIED_BYTES, np.uint8), np.ones(COPIED_BYTES, np.uint8)
    begin = time.process_time()
    np.copyto(target, source)
    return time.process_time() - begin


@contextmanager
def _push_and_pull() -> Iterator[tuple[zmq.Socket[bytes], zmq.Socket[bytes]]]:
    with zmq.Context() as context, context.socket(zmq.PUSH) as push, context.socket(zmq.PULL) as pull:
        push.linger = pull.linger = 0
        push.setsockopt(zmq.SNDTIMEO, 10_000)
        pull.setsockopt(zmq.RCVTIMEO, 10_000)
        yield push, pull


def _messages() -> float:
    """Return the CPU time of sending and receiving, the threads of ZeroMQ included."""
    message = bytes(MESSAGE_BYTES)
    with _push_and_pull() as (push, pull):
        push.setsockopt(zmq.SNDHWM, 2 * MESSAGES)
        pull.setsockopt(zmq.RCVHWM, 2 * MESSAGES)
        # ipc, unlike inproc, passes the kernel as between services.
        with tempfile.TemporaryDirectory() as directory:
            address = f"ipc://{directory}/costs"
            pull.bind(address)
            push.connect(address)
            begin = time.process_time()
            for _ in range(MESSAGES):
                push.send(message)
            for _ in range(MESSAGES):
                pull.recv()
            return time.process_time() - begin


def _network() -> float:
    """Return the CPU time of sending parts of images by TCP and of receiving them."""
    part = bytes(PART_BYTES)
    with _push_and_pull() as (push, pull):
        push.connect(f"tcp://127.0.0.1:{pull.bind_to_random_port('tcp://127.0.0.1')}")
        begin = time.process_time()
        for _ in range(PARTS):
            push.send(part, copy=False)
            pull.recv(copy=False)
        return time.process_time() - begin


def _packets() -> float:
    """Return the time of the receiving calls alone."""
    packet, buffer, received_s = bytes(JUNGFRAU_PAYLOAD_BYTES), bytearray(JUNGFRAU_PAYLOAD_BYTES), 0.0
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(10)
        # One after another, so that no packet is lost.
        for _ in range(PACKETS):
            sender.sendto(packet, receiver.getsockname())
            begin = time.process_time()
            receiver.recv_into(buffer)
            received_s += time.process_time() - begin
    return received_s
