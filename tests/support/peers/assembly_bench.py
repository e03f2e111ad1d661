"""A receiver's frame assembly without sockets: slots that hold garbage, and a clock that the test sets.

Packets go into memory in one of three ways, as in a receiver: some place, from which they are copied; where
they are expected; or there by compiled code, as long as they arrive in order.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
from support.peers.udp_detectors import (
    eiger_frame,
    gigafrost_packet,
)
from support.processes.deployment import make_config

from stddaq.config import DetectorConfig
from stddaq.dataplane.ring_layout import CURSOR_HEADER
from stddaq.udp.batch_memory import BatchMemory
from stddaq.udp.frame_message import SEQUENCE_OFFSET, frame_layout
from stddaq.udp.frame_ring import FRAME_SLOTS, FrameMemory
from stddaq.udp.geometry import frame_bytes
from stddaq.udp.packets import packets_of
from stddaq.udp.steady_assembly import SteadyAssembly
from stddaq.udp.steady_frames import CAPACITY, SteadyFrames
from stddaq.udp.steady_kernels import FRAMES_AHEAD

GARBAGE = 0xEE
RANDOM = np.random.default_rng(1)


@dataclass
class Announced:
    frame_id: int
    n_missing: int
    pixels: bytes
    message: bytes


class Way(Enum):
    COPIED = "copied"
    IN_PLACE = "in place"
    COMPILED = "compiled"


class Bench:
    """An assembly of one module whose slots hold garbage, and a clock that the test sets.

    Attributes:
        way: how packets go into memory.
        n_steady: frames that compiled code has announced.
        stays: compiled code keeps the frame that it receives until `close`, or another packet than expected
            arrives; otherwise until all packets were added.
    """

    way = Way.COMPILED

    def __init__(
        self, detector_type: str, module: int = 0, idle_time: float | None = None, **keys: object
    ) -> None:
        config = DetectorConfig.parse(make_config(detector_type=detector_type, n_modules=8, **keys))
        self.packets = packets_of(config, module)
        self._memory = BatchMemory(self.packets.header, self.packets.row_bytes, has_times=True)
        # Slots that were not used take no memory.
        slots = np.zeros((FRAME_SLOTS, frame_bytes(config)), np.uint8)
        self._frames = FrameMemory(slots, np.zeros(CURSOR_HEADER + FRAME_SLOTS, np.uint64))
        self._used: set[int] = set()
        self._layout = frame_layout(config.detector_type)
        self.assembly = SteadyAssembly(self.packets, self, idle_time)
        self._steady = SteadyFrames(self.packets, self._memory, self.assembly)
        self.now, self.n_added, self.n_steady = 100.0, 0, 0
        self.stays = self._is_steady = False
        self.announced: list[Announced] = []
        # Of compiled code, by id.
        self.sequences: dict[int, bytes] = {}

    def begin(self, frame_id: int) -> np.ndarray:
        slot = frame_id % FRAME_SLOTS
        if slot not in self._used:
            self._used.add(slot)
            self._frames.slots[slot] = GARBAGE
        return self._frames.slots[slot]

    def commit_bytes(self, frame_id: int, message: bytes | bytearray) -> None:
        parsed = np.frombuffer(bytes(message), self._layout)[0]
        assert int(parsed["id"]) == frame_id
        pixels = self._frames.slots[frame_id % FRAME_SLOTS].tobytes()
        message = bytes(message[:SEQUENCE_OFFSET])
        self.announced.append(Announced(frame_id, int(parsed["n_missing_packets"]), pixels, message))

    def add(self, *datagrams: bytes) -> None:
        """Add datagrams as the receiver does: those that are expected in order, received in their places.

        Memory beyond the end of a datagram is that of others.
        """
        rest = list(datagrams)
        while rest:
            if self.way is Way.COMPILED and (n := self._add_steady(rest)):
                rest = rest[n:]
                continue
            self.assembly.is_compiled = self.way is Way.COMPILED
            place = self.assembly.aim() if self.way is not Way.COPIED else None
            n_places = self._memory.aim(place)
            n = self._receive(rest[:n_places])
            payloads = self._memory.payloads if place is None else place
            headers, lengths = self._memory.headers[:n], self._memory.lengths[:n]
            self.assembly.add(headers, payloads[:n], lengths, self._memory.times, self.now)
            rest = rest[n:]

    def _add_steady(self, datagrams: Sequence[bytes]) -> int:
        """Add datagrams by compiled code, until one is not expected. Return how many batches had."""
        steady, n_added = self._steady, 0
        if not self._is_steady:
            self._is_steady = steady.start()
        if (found := self.assembly.steady) is not None:
            for i in range(FRAMES_AHEAD + CAPACITY):
                self.begin(found[1] + i * found[2])
        is_expected = self._is_steady
        while is_expected and n_added < len(datagrams) and (n_places := steady.aim(self._frames)):
            n = self._receive(datagrams[n_added : n_added + n_places])
            is_expected = steady.take(n, self.now, self._frames)
            n_added += n
            for message in steady.unannounced():
                self.n_steady += 1
                self.commit_bytes(int(message[0]), message.tobytes())
                self.sequences[int(message[0])] = message.tobytes()[SEQUENCE_OFFSET:]
            if steady.is_full:
                steady.settle()
        if not is_expected or not self.stays:
            self._leave()
        return n_added

    def compile(self) -> None:
        """Compile the loop that receives, or load it from the cache."""
        self._steady.compile(self._frames)

    def _leave(self) -> None:
        if self._is_steady:
            self._is_steady = False
            self._steady.leave(self.now)

    def close(self) -> None:
        """Announce all frames."""
        self._leave()
        self.assembly.close()

    def _receive(self, datagrams: Sequence[bytes]) -> int:
        """Put datagrams where the kernel would put them. Return their number."""
        memory, n, n_header = self._memory, len(datagrams), self.packets.header.itemsize
        for i, datagram in enumerate(datagrams):
            for (place, n_bytes), part in zip(
                memory.iovecs[i].tolist(), (datagram[:n_header], datagram[n_header:]), strict=True
            ):
                ctypes.memset(place, GARBAGE, n_bytes)
                ctypes.memmove(place, part, min(len(part), n_bytes))
        self.n_added += n
        memory.lengths[:n] = [len(datagram) for datagram in datagrams]
        memory.times[:n] = self.now, 0
        return n

    def stamps(self) -> list[int]:
        """Return the sequence numbers of the slots that compiled code has opened, or 0."""
        return self._frames.cursor[CURSOR_HEADER:].tolist()

    def ids(self) -> list[int]:
        return [frame.frame_id for frame in self.announced]

    def missing(self) -> list[int]:
        return [frame.n_missing for frame in self.announced]

    def counts(self) -> dict[str, int]:
        """Return what was counted, without zeros."""
        a = self.assembly
        counts = {
            "packets": a.n_packets,
            "repeated": a.n_repeated,
            "late": a.n_late,
            "frames": a.n_frames,
            "corrupted": a.n_corrupted,
            "missing": a.n_missing,
            "restarts": a.n_restarts,
            **a.n_bad,
        }
        return {key: value for key, value in counts.items() if value}


def pixels8() -> np.ndarray:
    return RANDOM.integers(1, 256, (256, 512), np.uint8)


def eiger() -> Bench:
    return Bench("eiger", bit_depth=8)


def frames(*ids: int) -> dict[int, list[bytes]]:
    """Return the 32 packets of each frame of an Eiger, 8 bit."""
    return {frame_id: eiger_frame(frame_id, pixels8()) for frame_id in ids}


def payload(packets: Sequence[bytes], lost: Sequence[int] = ()) -> bytes:
    """Return the pixels of an Eiger's frame, with 0 for lost packets."""
    return b"".join(bytes(4096) if i in lost else packet[48:] for i, packet in enumerate(packets))


def gigafrost(frame: int, scan_id: int = 7, module: int = 0) -> bytes:
    """Return the only packet of a link, 8 x 48 pixels."""
    return gigafrost_packet(frame, 0, bytes([frame]) * 72, module=module, shape=(8, 48), scan_id=scan_id)


def small_gigafrost(module: int = 0) -> Bench:
    return Bench("gigafrost", module, image_pixel_height=8, image_pixel_width=48)
