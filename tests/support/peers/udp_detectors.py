"""Detectors that send UDP packets: their packets as bytes, written out field by field, and ports for them."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
from collections.abc import Sequence

import numpy as np
from support.processes.deployment import ports_for_services

# struct of the slsDetectorPackage, version 2: see `sls_packet`.
_SLS = struct.Struct("<QIIdQHHHHIHBB")
_GIGAFROST = struct.Struct("<BBBBIIHHQII")
EIGER, JUNGFRAU = 1, 3


def free_udp_ports(n: int) -> int:
    """Return the first of `n` consecutive UDP ports that are free now."""
    ports = ports_for_services()
    for _ in range(200):
        first = random.SystemRandom().choice(ports[: 1 - n or None])
        with contextlib.ExitStack() as probes:
            try:
                for port in range(first, first + n):
                    probe = probes.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                    probe.bind(("0.0.0.0", port))
            except OSError:
                continue
            return first
    raise AssertionError(f"no {n} consecutive UDP ports are free")


def sls_packet(
    frame: int,
    number: int,
    payload: bytes,
    *,
    detector: int,
    bunch_id: float = 0.0,
    row: int = 0,
    column: int = 0,
    debug: int = 0,
    timestamp: int = 0,
    version: int = 2,
) -> bytes:
    """Return a packet of an Eiger or a Jungfrau."""
    header = _SLS.pack(
        frame, 376, number, bunch_id, timestamp, 0, row, column, 0, debug, 0, detector, version
    )
    return header + payload


def eiger_frame(frame: int, pixels: np.ndarray, **fields: int) -> list[bytes]:
    """Return the packets of 256 x 512 pixels of a port."""
    payload = pixels.tobytes()
    return [
        sls_packet(frame, i, payload[4096 * i : 4096 * (i + 1)], detector=EIGER, **fields)
        for i in range(len(payload) // 4096)
    ]


def jungfrau_frame(
    frame: int, pixels: np.ndarray, bunch_id: float, debug: int = 0, timestamp: int = 0
) -> list[bytes]:
    """Return the packets of 512 x 1024 pixels of a module."""
    payload = pixels.tobytes()
    return [
        sls_packet(
            frame,
            i,
            payload[8192 * i : 8192 * (i + 1)],
            detector=JUNGFRAU,
            bunch_id=bunch_id,
            debug=debug,
            timestamp=timestamp,
        )
        for i in range(128)
    ]


def pack12(pixels: np.ndarray) -> bytes:
    """Return 12-bit pixels as a bit string, two pixels in three bytes."""
    first, second = pixels.reshape(-1, 2).astype(np.uint16).T
    packed = np.empty((len(first), 3), np.uint8)
    packed[:, 0] = first & 0xFF
    packed[:, 1] = first >> 8 | (second & 0x0F) << 4
    packed[:, 2] = second >> 4
    return packed.tobytes()


def gigafrost_packet(
    frame: int,
    first_row: int,
    payload: bytes,
    *,
    module: int,
    shape: tuple[int, int],
    scan_id: int = 7,
    status: int = 0,
    swap: int = 0,
    correction_mode: int = 5,
    timestamp: int = 0x0102030405,
    exposure_time: int = 0x0A0B0C,
    sync_time: int = 0x11223344,
    scan_time: int = 0x55667788,
) -> bytes:
    """Return a packet of a link of an image of `shape`."""
    height, width = shape
    quadrant, link, rows = module % 8 // 2, module % 2, height // 2
    return (
        _GIGAFROST.pack(
            0xCB,
            width // 2 // 12,
            rows & 0xFE | swap,
            quadrant << 6 | link << 5 | correction_mode << 2 | rows >> 8,
            scan_id,
            frame,
            status,
            first_row,
            timestamp | exposure_time << 40,
            sync_time,
            scan_time,
        )
        + payload
    )


def gigafrost_frame(
    frame: int, pixels: np.ndarray, *, module: int, shape: tuple[int, int], rows: int, **fields: int
) -> list[bytes]:
    """Return the packets of a link, `rows` rows in each; `pixels` are those of the module."""
    packets = []
    for first in range(0, len(pixels), rows):
        part = pixels[first : first + rows]
        padding = bytes(36) if len(part) % 2 and part.shape[1] % 48 else b""
        packets.append(
            gigafrost_packet(frame, first, pack12(part) + padding, module=module, shape=shape, **fields)
        )
    return packets


class UdpSender:
    """A detector's network card: sends datagrams to consecutive ports of the loopback interface."""

    def __init__(self, first_port: int) -> None:
        self._first_port = first_port
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def send(self, module: int, packets: Sequence[bytes]) -> None:
        for packet in packets:
            self._socket.sendto(packet, ("127.0.0.1", self._first_port + module))

    def close(self) -> None:
        self._socket.close()
