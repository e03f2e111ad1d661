"""CPU cost of receivers of UDP packets, compared with a bare recvmmsg loop.

A camera process sends frames of one module, in turn to a loop that only receives and to a receiver. When no
packet is left, the loop waits for a whole frame, as the receiver does, so that both receive batches of about
the same size. The loop receives once into the same memory again and again, which stays in caches, and once
into as many slots as the receiver uses.
"""

from __future__ import annotations

import json
import select
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import zmq
from rig import configuration, cpu, detector, end, start, wait_ready
from tables import Table, spread
from udp_camera import EIGER, JUNGFRAU, SLOTS_IN_USE, camera_process, sent

from stddaq.config import DetectorConfig
from stddaq.dataplane.connections import open_socket
from stddaq.dataplane.endpoints import metadata_stream
from stddaq.udp.batch_memory import BATCH
from stddaq.udp.batch_socket import BatchSocket
from stddaq.udp.frame_message import frame_layout, parse_frame
from stddaq.udp.packets import packets_of
from stddaq.udp.receiver import LONGEST_WAIT_S, SHORTEST_WAIT_S

ROUNDS = 5
SECONDS = 1.0
TIMEOUT_S = 10.0
# A round has ended when the camera has, and nothing arrives for so long.
SILENCE_MS = 200
# Packets per round that may be lost, on a machine that is busy with something else.
MAX_LOST = 0.05
# Name, program, fields of the configuration, frames per second.
CASES: list[tuple[str, str, dict[str, Any], tuple[float, ...]]] = [
    ("GigaFRoST 2016x2016", "std_udp_recv_gf", {"n_modules": 8}, (100.0, 400.0)),
    ("Eiger 16 bit", "std_udp_recv_eg", EIGER | {"bit_depth": 16}, (200.0, 800.0)),
    ("Jungfrau", "std_udp_recv_jf", JUNGFRAU | {"detector_type": "jungfrau-raw"}, (100.0, 400.0)),
]


def receiving(rounds: int = ROUNDS) -> Table:
    """Measure the receivers and the bare loop."""
    table = Table(
        "udp-packets",
        "CPU of the receivers of UDP packets",
        f"Median (min-max) of {rounds} rounds of {SECONDS:g} s with one module and a subscriber, compared "
        "with a loop that receives the same packets with recvmmsg: into the same memory again and again "
        "('bare'), and into as much memory as the receiver fills ('slots'). When no packet is left, it waits "
        f"for a frame, at most {LONGEST_WAIT_S * 1e3:g} ms. Target for the ratio to 'bare': 1.3.",
        [
            *("detector", "packets/s", "packets/call", "bare us/packet", "slots us/packet"),
            *("receiver us/packet", "ratio to bare", "ratio to slots"),
        ],
    )
    for name, program, fields, rates in CASES:
        with _camera(fields) as (paths, camera), _receiver(program, paths[0], camera) as receiver:
            bare = _BareLoop(DetectorConfig.load(paths[1]), camera)
            for rate in rates:
                measured = [
                    (bare.measure(rate), bare.measure(rate, bare.slots), receiver.measure(rate))
                    for _ in range(rounds + 1)
                ][1:]
                table.add(
                    name,
                    rate * bare.n_packets,
                    bare.packets_per_call,
                    *(statistics.median(used) for used in zip(*measured, strict=True)),
                    spread([ours / same for same, _, ours in measured]),
                    spread([ours / slots for _, slots, ours in measured]),
                )
            bare.close()
    return table


@contextmanager
def _camera(fields: dict[str, Any]) -> Iterator[tuple[list[Path], Connection]]:
    """Start a camera for the receiver's port, and one for that of the bare loop."""
    with detector("a", ram_buffer_gb=0, **fields) as path:
        other = path.with_name("other.json")
        other.write_text(
            json.dumps(configuration("a", ram_buffer_gb=0, **fields) | {"start_udp_port": 2100}),
            encoding="utf-8",
        )
        with camera_process(path, other) as camera:
            yield [path, other], camera


class _Receiver:
    """The service, and a subscriber to its frames."""

    def __init__(
        self,
        config: DetectorConfig,
        camera: Connection,
        process: subprocess.Popen[str],
        stream: zmq.Socket[bytes],
    ) -> None:
        self._camera, self._process, self._stream = camera, process, stream
        self._layout, self._n_packets = frame_layout(config.detector_type), packets_of(config, 0).n_packets

    def measure(self, rate: float) -> float:
        """Return us of CPU per packet."""
        n_frames, n_packets = int(rate * SECONDS), 0
        before = cpu([self._process])
        self._camera.send((0, "send_frames", 0, n_frames, rate))
        sent(self._camera)
        while self._stream.poll(SILENCE_MS):
            message = parse_frame(self._stream.recv(), self._layout)
            if message is not None:
                n_packets += self._n_packets - int(message["n_missing_packets"])
        return _per_packet(cpu([self._process]) - before, n_packets, n_frames * self._n_packets)


@contextmanager
def _receiver(program: str, path: Path, camera: Connection) -> Iterator[_Receiver]:
    config = DetectorConfig.load(path)
    process = start(program, path, 0)
    try:
        wait_ready(process)
        with zmq.Context() as context:
            stream = open_socket(context, zmq.SUB)
            stream.subscribe(b"")
            stream.connect(metadata_stream(config.detector_name, "0"))
            time.sleep(0.3)  # The subscription must be at the receiver.
            yield _Receiver(config, camera, process, stream)
            stream.close()
    finally:
        end(process)


class _BareLoop:
    """Receives in this process.

    Attributes:
        slots: memory of as many packets as the slots that the receiver uses have.
    """

    def __init__(self, config: DetectorConfig, camera: Connection) -> None:
        self._camera, packets = camera, packets_of(config, 0)
        self.n_packets, self.packets_per_call = packets.n_packets, 0.0
        self._socket = BatchSocket(
            ("127.0.0.1", config.start_udp_port), packets.header, packets.payload_bytes
        )
        self.slots = np.ones((SLOTS_IN_USE * packets.n_packets, packets.payload_bytes), np.uint8)

    def measure(self, rate: float, slots: np.ndarray | None = None) -> float:
        """Return us of CPU per packet that is received into the memory of one batch, or into `slots`."""
        n_frames, n_packets = int(rate * SECONDS), 0
        n_calls, delay = self._socket.n_calls, min(max(SHORTEST_WAIT_S, 1 / rate), LONGEST_WAIT_S)
        poller = select.poll()
        poller.register(self._socket, select.POLLIN)
        receive, place, first = self._socket.receive, None, 0
        begin = time.process_time()
        self._camera.send((1, "send_frames", 0, n_frames, rate))
        # The camera may pause, on a machine that is busy with something else.
        deadline = time.monotonic() + SECONDS + TIMEOUT_S
        while poller.poll(SILENCE_MS) or not (self._camera.poll() or time.monotonic() > deadline):
            time.sleep(delay)
            received = BATCH
            while received == BATCH:
                if slots is not None:
                    first = first if first + BATCH <= len(slots) else 0
                    place = slots[first : first + BATCH]
                received = receive(place)
                n_packets += received
                first += received
        self.packets_per_call = n_packets / (self._socket.n_calls - n_calls)
        used = time.process_time() - begin
        sent(self._camera)
        return _per_packet(used, n_packets, n_frames * self.n_packets)

    def close(self) -> None:
        """Close its socket."""
        self._socket.close()


def _per_packet(used: float, n_received: int, n_sent: int) -> float:
    """Return us of CPU per packet that arrived."""
    if n_received < (1 - MAX_LOST) * n_sent:
        raise SystemExit(f"only {n_received} of {n_sent} packets arrived")
    return used / n_received * 1e6
