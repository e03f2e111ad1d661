"""A receiver's frame assembly without sockets: slots that hold garbage, and a clock that the test sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from support.peers.udp_detectors import (
    eiger_frame,
    gigafrost_packet,
)
from support.processes.deployment import make_config

from stddaq.config import DetectorConfig
from stddaq.udp.assembly import FrameAssembly
from stddaq.udp.frame_message import frame_layout
from stddaq.udp.frame_ring import FRAME_SLOTS
from stddaq.udp.geometry import frame_bytes
from stddaq.udp.packets import packets_of

GARBAGE = 0xEE
RANDOM = np.random.default_rng(1)


@dataclass
class Announced:
    frame_id: int
    n_missing: int
    pixels: bytes


class Bench:
    """An assembly of one module whose slots hold garbage, and a clock that the test sets.

    Attributes:
        aims: packets are received in the places where they are expected.
    """

    aims = True

    def __init__(
        self, detector_type: str, module: int = 0, idle_time: float | None = None, **keys: object
    ) -> None:
        config = DetectorConfig.parse(make_config(detector_type=detector_type, n_modules=8, **keys))
        self.packets = packets_of(config, module)
        self._slots: dict[int, np.ndarray] = {}
        self._frame_bytes = frame_bytes(config)
        self._layout = frame_layout(config.detector_type)
        self.assembly = FrameAssembly(self.packets, self, idle_time)
        self.now, self.n_added = 100.0, 0
        self.announced: list[Announced] = []

    def begin(self, frame_id: int) -> np.ndarray:
        slot = frame_id % FRAME_SLOTS
        return self._slots.setdefault(slot, np.full(self._frame_bytes, GARBAGE, np.uint8))

    def commit_bytes(self, frame_id: int, message: bytearray) -> None:
        parsed = np.frombuffer(bytes(message), self._layout)[0]
        assert int(parsed["id"]) == frame_id
        pixels = self._slots[frame_id % FRAME_SLOTS].tobytes()
        self.announced.append(Announced(frame_id, int(parsed["n_missing_packets"]), pixels))

    def add(self, *datagrams: bytes) -> None:
        """Add datagrams as the receiver does: those that are expected in order, received in their places.

        Memory beyond the end of a datagram is that of others.
        """
        rest = list(datagrams)
        while rest:
            place = self.assembly.aim() if self.aims else None
            n = len(rest) if place is None else min(len(rest), len(place))
            self._add(rest[:n], place)
            rest = rest[n:]

    def _add(self, datagrams: Sequence[bytes], place: np.ndarray | None) -> None:
        n_header, n_payload = self.packets.header.itemsize, self.packets.row_bytes
        headers = np.full((len(datagrams), n_header), GARBAGE, np.uint8)
        payloads = (
            np.empty((len(datagrams), n_payload), np.uint8) if place is None else place[: len(datagrams)]
        )
        payloads[:] = GARBAGE
        for i, datagram in enumerate(datagrams):
            header, payload = datagram[:n_header], datagram[n_header : n_header + n_payload]
            headers[i, : len(header)] = list(header)
            payloads[i, : len(payload)] = np.frombuffer(payload, np.uint8)
        self.n_added += len(datagrams)
        lengths = np.array([len(datagram) for datagram in datagrams], np.uint32)
        times = np.full((len(datagrams), 2), (self.now, 0), np.int64)
        self.assembly.add(headers.view(self.packets.header)[:, 0], payloads, lengths, times, self.now)

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
