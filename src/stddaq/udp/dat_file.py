"""Files of recorded datagrams, `<port>.dat`: for each datagram its length (uint64) and its bytes."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from stddaq.config import DetectorConfig
from stddaq.config.modules import receiver_modules
from stddaq.errors import EndpointError, FileLayoutError
from stddaq.text import mismatch

_LENGTH = struct.Struct("<Q")
MAX_DATAGRAM_BYTES = 65507
MAX_PORT = 65535


def dat_path(folder: Path, port: int) -> Path:
    """Return the file of the datagrams of a port."""
    return folder / f"{port}.dat"


def receiver_ports(config: DetectorConfig, n_link_sets: int, first: int | None = None) -> list[int]:
    """Return the ports of all receivers of a detector, from `start_udp_port` or `first` on.

    Raise `ConfigError` or `EndpointError`.
    """
    first = config.start_udp_port if first is None else first
    ports = [first + module for module in receiver_modules(config, range(config.n_modules), n_link_sets)]
    if ports[-1] > MAX_PORT:
        raise EndpointError(
            mismatch(
                f"UDP ports of {len(ports)} modules from {first} on", f"up to {MAX_PORT}", f"{ports[-1]}"
            )
        )
    return ports


def write_datagram(file: BinaryIO, datagram: bytes) -> None:
    """Append one datagram."""
    file.write(_LENGTH.pack(len(datagram)))
    file.write(datagram)


def read_datagrams(file: BinaryIO, where: Path) -> Iterator[bytes]:
    """Yield the datagrams of a file. Raise `FileLayoutError` where it does not continue."""
    while length := file.read(_LENGTH.size):
        if len(length) < _LENGTH.size:
            raise FileLayoutError(
                mismatch(f"{where}", "a length of 8 bytes", f"{len(length)} bytes at its end")
            )
        (n_bytes,) = _LENGTH.unpack(length)
        if n_bytes > MAX_DATAGRAM_BYTES:
            found = f"{n_bytes} at byte {file.tell() - _LENGTH.size}"
            raise FileLayoutError(mismatch(f"{where}", f"a length of at most {MAX_DATAGRAM_BYTES}", found))
        datagram = file.read(n_bytes)
        if len(datagram) < n_bytes:
            found = f"{len(datagram)} at its end"
            raise FileLayoutError(mismatch(f"{where}", f"a datagram of {n_bytes} bytes", found))
        yield datagram
