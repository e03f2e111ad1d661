"""The packets of each detector: which ones are valid, to which frame each belongs, and where its pixels go.

Everything here is computed for a whole batch of packets at once.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from stddaq.config import DetectorConfig
from stddaq.config.modules import GIGAFROST_MODULES, GIGAFROST_RECEIVERS
from stddaq.errors import ConfigError
from stddaq.text import mismatch
from stddaq.udp.frame_order import Identity
from stddaq.udp.geometry import GigaFrostGeometry, packed_geometry
from stddaq.udp.packet_headers import (
    EIGER,
    GIGAFROST_HEADER,
    GIGAFROST_PROTOCOL,
    JUNGFRAU,
    SLS_HEADER,
    SLS_VERSION,
    TIMESTAMP_BITS,
)
from stddaq.udp.packet_sequence import NextOpening, PacketSequence

# Of the opening, without swap bit and correction mode.
_OPENING_MASK = 0xE3FEFFFF
# The headers once more, and the frame messages (see `frame_message`), for single frames.
_SLS_FIELDS = struct.Struct("<QIIdQHHHxxIHBB")
_GIGAFROST_FIELDS = struct.Struct("<BBBBIIHHQII")
_BUNCH_BITS, _BUNCH_ID = struct.Struct("<Q"), struct.Struct("<d")
_EIGER_MESSAGE = struct.Struct("<QQHHHH26xQ6x")
_JUNGFRAU_MESSAGE = struct.Struct("<QQH8xQQQQ6x")
_GIGAFROST_MESSAGE = struct.Struct("<QQHBBBBB?IIIIIQQ4x")
# The number of a frame's first packet, and its first row.
_NO_NUMBER, _NO_ROW = bytes(4), bytes(2)
# Half-modules in a column of the 9M, whose headers count ports from the bottom, column by column.
_EIGER_9M_MODULES, _EIGER_9M_HALVES = 72, 12


@dataclass(frozen=True, slots=True)
class Rejected:
    """The verdict on a batch with invalid packets.

    Attributes:
        good: which packets are valid.
        counts: invalid packets by kind.
        examples: the first one of each kind: its place in the batch, and what is wrong, in words.
    """

    good: np.ndarray
    counts: Mapping[str, int]
    examples: Mapping[str, tuple[int, str]]


class Packets(Protocol):
    """The packets that one receiver accepts.

    Attributes:
        header: layout of the headers.
        n_packets: packets of one frame.
        payload_bytes: pixels of the largest packet.
        row_bytes: bytes of a packet that are kept in the frame: `payload_bytes` without padding.
        last_bytes: the same of the last packet of a frame.
        kinds: why a packet may be invalid.
        has_epochs: the headers say when the ids restart.
        sequence: the packets of a frame in order.
        opening: the first packet of the frame after one.
    """

    header: np.dtype
    n_packets: int
    payload_bytes: int
    row_bytes: int
    last_bytes: int
    kinds: tuple[str, ...]
    has_epochs: bool
    sequence: PacketSequence
    opening: NextOpening

    def check(self, headers: np.ndarray, lengths: np.ndarray) -> Rejected | None:
        """Return which packets are not valid; None if all are. `lengths` in bytes, with the header."""
        ...

    def is_valid_first(self, header: bytes) -> bool:
        """Return whether a header is that of a valid first packet of a frame."""
        ...

    def numbers(self, headers: np.ndarray) -> np.ndarray:
        """Return the place of each valid packet in its frame, from 0."""
        ...

    def keys(self, headers: np.ndarray) -> np.ndarray:
        """Return the keys: packets with one key belong to one frame of an acquisition."""
        ...

    def tags(self, headers: np.ndarray) -> np.ndarray:
        """Return the tags: packets with one key and different tags are of different acquisitions."""
        ...

    def describe(self, header: bytes, received: int) -> tuple[Identity, bytes]:
        """Return the frame that a header names, and its message, in which all packets are missing.

        The header is that of one packet, which reached this machine at `received`, ns. A frame needs this
        once, which numpy would make expensive.
        """
        ...

    def misplaced(self, headers: np.ndarray) -> str:
        """Return in words that valid packets seem to come from another module; empty if they do not."""
        ...


def packets_of(config: DetectorConfig, module: int, *, do_not_store_bit: int = 15) -> Packets:
    """Return the packets of a module. Raise `ConfigError` or `GeometryError`."""
    if config.detector_type == "gigafrost":
        return GigaFrostPackets(config, module, do_not_store_bit)
    if module >= config.n_modules:
        where = f"module_id of a detector with {config.n_modules} modules"
        raise ConfigError(mismatch(where, f"0 to {config.n_modules - 1}", f"{module}"))
    return (EigerPackets if config.detector_type == "eiger" else JungfrauPackets)(config, module)


class _Checks:
    """Collects the verdicts on a batch; a packet counts under the first kind that rejects it."""

    def __init__(self, n: int) -> None:
        self._good = np.ones(n, bool)
        self._counts: dict[str, int] = {}
        self._examples: dict[str, tuple[int, str]] = {}

    def demand(self, kind: str, passes: np.ndarray, expected: str, got: np.ndarray) -> None:
        """Reject the packets that do not pass and were not rejected before."""
        rejected = self._good & ~passes
        if n := int(np.count_nonzero(rejected)):
            # A kind may have several demands.
            self._counts[kind] = self._counts.get(kind, 0) + n
            first = int(rejected.argmax())
            self._examples.setdefault(kind, (first, mismatch(kind, expected, str(got[first]))))
            self._good &= passes

    def result(self) -> Rejected | None:
        return None if not self._counts else Rejected(self._good, self._counts, self._examples)


class _SlsPackets(Packets):
    """What Eiger and Jungfrau have in common."""

    header = SLS_HEADER
    has_epochs = False
    detector: int
    id_field: str
    highest_id: int

    def __init__(self, config: DetectorConfig, module: int) -> None:
        self._config, self._module = config, module
        geometry = packed_geometry(config)
        self.n_packets = geometry.n_packets
        self.payload_bytes = self.row_bytes = self.last_bytes = geometry.payload_bytes
        self._datagram_bytes = SLS_HEADER.itemsize + geometry.payload_bytes
        self._type = self.detector | SLS_VERSION << 8
        self._type_bytes = self._type.to_bytes(2, "little")
        numbers = np.zeros(self.n_packets, SLS_HEADER)
        numbers["packet_number"] = np.arange(self.n_packets)
        lengths = np.full(self.n_packets, self._datagram_bytes, np.uint32)
        self.sequence = PacketSequence(numbers, "packet_number", lengths)
        same = {"packet_number": 2**32 - 1, "type_and_version": 2**16 - 1}
        self.opening = NextOpening.of(SLS_HEADER, same, self.id_field, self.highest_id)

    def check(self, headers: np.ndarray, lengths: np.ndarray) -> Rejected | None:
        is_good = (lengths == self._datagram_bytes) & (headers["type_and_version"] == self._type)
        is_good &= headers["packet_number"] < self.n_packets
        if is_good.all() and self._have_ids(headers):
            return None
        return self._rejected(headers, lengths)

    def is_valid_first(self, header: bytes) -> bool:
        return header[12:16] == _NO_NUMBER and header[46:] == self._type_bytes

    def _have_ids(self, headers: np.ndarray) -> bool:
        del headers
        return True

    def _rejected(self, headers: np.ndarray, lengths: np.ndarray) -> Rejected | None:
        checks, version, detector = _Checks(len(headers)), headers["version"], headers["detector_type"]
        checks.demand(
            "size", lengths == self._datagram_bytes, f"datagrams of {self._datagram_bytes} bytes", lengths
        )
        checks.demand("version", version == SLS_VERSION, f"version {SLS_VERSION} of the header", version)
        checks.demand("detector", detector == self.detector, f"detector type {self.detector}", detector)
        numbers = headers["packet_number"]
        checks.demand("number", numbers < self.n_packets, f"packet 0 to {self.n_packets - 1}", numbers)
        self._demand_id(checks, headers)
        return checks.result()

    def _demand_id(self, checks: _Checks, headers: np.ndarray) -> None:
        """Check what the id is made of."""

    def numbers(self, headers: np.ndarray) -> np.ndarray:
        return headers["packet_number"]

    def keys(self, headers: np.ndarray) -> np.ndarray:
        return headers["frame_number"]


class EigerPackets(_SlsPackets):
    """The packets of one port of an Eiger: half of a half-module."""

    detector = EIGER
    id_field, highest_id = "frame_number", 2**62
    kinds = ("size", "version", "detector", "number")

    def tags(self, headers: np.ndarray) -> np.ndarray:
        return headers["timestamp"]

    def describe(self, header: bytes, received: int) -> tuple[Identity, bytes]:
        number, _, _, _, stamp, _, row, column, *_ = _SLS_FIELDS.unpack(header)
        depth = self._config.bit_depth
        message = _EIGER_MESSAGE.pack(number, self.n_packets, self._module, depth, column, row, received)
        return Identity(number, number, 0, stamp, stamp), message

    def misplaced(self, headers: np.ndarray) -> str:
        row, column = int(headers["row"][0]), int(headers["column"][0])
        if not (row or column):
            return ""  # Also what a detector without positions sends.
        if column > 1 and self._config.n_modules != _EIGER_9M_MODULES:
            return ""  # How the ports of several columns are counted depends on their height.
        port = 2 * (row + _EIGER_9M_HALVES * (column // 2)) + column % 2
        if port == self._module:
            return ""
        return mismatch(
            "row and column of the header",
            f"those of module {self._module}",
            f"row {row}, column {column}, of module {port}",
            "links in the wrong ports?",
        )


class JungfrauPackets(_SlsPackets):
    """The packets of one module of a Jungfrau. The id of an image is the bunch id, a double."""

    detector = JUNGFRAU
    id_field, highest_id = "bunch_id", 2**53
    kinds = ("size", "version", "detector", "number", "bunch_id")

    def is_valid_first(self, header: bytes) -> bool:
        (bunch_id,) = _BUNCH_ID.unpack_from(header, 16)
        return super().is_valid_first(header) and 1 <= bunch_id < 2**64

    def _have_ids(self, headers: np.ndarray) -> bool:
        bunch_ids = headers["bunch_id"]
        return bool(((bunch_ids >= 1) & (bunch_ids < 2**64)).all())

    def _demand_id(self, checks: _Checks, headers: np.ndarray) -> None:
        bunch_ids = headers["bunch_id"]
        # An integer in place of the double is a tiny number.
        is_id = (bunch_ids >= 1) & (bunch_ids < 2**64) | (bunch_ids == 0)
        checks.demand("bunch_id", is_id, "a double from 0 to 2^64", bunch_ids)

    def tags(self, headers: np.ndarray) -> np.ndarray:
        return headers["bunch_bits"]

    def describe(self, header: bytes, received: int) -> tuple[Identity, bytes]:
        number, _, _, bunch_id, stamp, _, _, _, debug, *_ = _SLS_FIELDS.unpack(header)
        frame_id, module = int(bunch_id), self._module
        message = _JUNGFRAU_MESSAGE.pack(frame_id, self.n_packets, module, number, debug, module, received)
        (tag,) = _BUNCH_BITS.unpack_from(header, 16)
        return Identity(number, frame_id, 0, stamp, tag), message

    def misplaced(self, headers: np.ndarray) -> str:
        del headers  # They do not say which module sends them.
        return ""


class GigaFrostPackets(Packets):
    """The packets of one link of a GigaFRoST. Receivers 8 to 15 have the places of 0 to 7."""

    header = GIGAFROST_HEADER
    has_epochs = True
    kinds = ("size", "protocol", "geometry", "row", "quadrant", "link")

    def __init__(self, config: DetectorConfig, module: int, do_not_store_bit: int) -> None:
        if module >= GIGAFROST_RECEIVERS:
            expected = f"0 to {GIGAFROST_RECEIVERS - 1}"
            raise ConfigError(mismatch("module_id of a gigafrost", expected, f"{module}"))
        geometry = GigaFrostGeometry.of(*config.image_shape)
        self._geometry = geometry
        self._link_set, self._module = divmod(module, GIGAFROST_MODULES)
        self._do_not_store = 1 << do_not_store_bit
        self.n_packets, self.payload_bytes = geometry.n_packets, geometry.payload_bytes
        self.row_bytes = geometry.row_step_bytes
        self.last_bytes = geometry.pixel_bytes - self.row_bytes * (self.n_packets - 1)
        header_bytes = GIGAFROST_HEADER.itemsize
        self._full_bytes = header_bytes + geometry.payload_bytes
        self._last_bytes = header_bytes + geometry.last_payload_bytes
        self._last_row = geometry.module_height - geometry.last_rows
        self._rows = geometry.rows
        quadrant, link = divmod(self._module, 2)
        half_height = 2 * geometry.module_height
        self._opening = (
            GIGAFROST_PROTOCOL
            | geometry.module_width // 12 << 8
            | (half_height & 0xFE) << 16
            | (quadrant << 6 | link << 5 | half_height >> 8) << 24
        )
        # The size of the packet that starts with a row; 2^32-1 where none does, also after the last row.
        self._bytes_of_row = np.full(geometry.module_height + 1, 2**32 - 1, np.uint32)
        self._bytes_of_row[: self._last_row : self._rows] = self._full_bytes
        self._bytes_of_row[self._last_row] = self._last_bytes
        numbers = np.zeros(self.n_packets, GIGAFROST_HEADER)
        numbers["first_row"] = np.arange(self.n_packets) * self._rows
        self.sequence = PacketSequence(numbers, "first_row", self._bytes_of_row[numbers["first_row"]])
        same = {"opening": _OPENING_MASK, "scan_id": 2**32 - 1, "first_row": 2**16 - 1}
        self.opening = NextOpening.of(GIGAFROST_HEADER, same, "frame_index", 2**32 - 1)

    def check(self, headers: np.ndarray, lengths: np.ndarray) -> Rejected | None:
        is_good = headers["opening"] & _OPENING_MASK == self._opening
        is_good &= self._bytes_of_row.take(headers["first_row"], mode="clip") == lengths
        return None if is_good.all() else self._rejected(headers, lengths)

    def is_valid_first(self, header: bytes) -> bool:
        is_opening = int.from_bytes(header[:4], "little") & _OPENING_MASK == self._opening
        return is_opening and header[14:16] == _NO_ROW

    def _rejected(self, headers: np.ndarray, lengths: np.ndarray) -> Rejected | None:
        checks, rows, place = _Checks(len(headers)), headers["first_row"], headers["place"]
        sizes = sorted({self._full_bytes, self._last_bytes})
        fits = np.isin(lengths, sizes)
        checks.demand("size", fits, f"datagrams of {' or '.join(map(str, sizes))} bytes", lengths)
        protocol = headers["protocol"]
        checks.demand("protocol", protocol == GIGAFROST_PROTOCOL, "first byte 203", protocol)
        heights = ((headers["rows_and_swap"] & 0xFE) + ((place & 3).astype(int) << 8)) * 2
        widths = headers["column_blocks"].astype(int) * 24
        height, width = 4 * self._geometry.module_height, 2 * self._geometry.module_width
        shapes = np.array([f"{h}x{w}" for h, w in zip(heights, widths, strict=True)], object)
        # The public packet simulator leaves the number of rows 0.
        has_shape = ((heights == height) | (heights == 0)) & (widths == width)
        checks.demand("geometry", has_shape, f"images of {height}x{width}", shapes)
        quadrants, links = place >> 6, place >> 5 & 1
        quadrant, link = divmod(self._module, 2)
        checks.demand("quadrant", quadrants == quadrant, f"{quadrant} in this port", quadrants)
        checks.demand("link", links == link, f"{link} in this port", links)
        allowed = f"a multiple of {self._rows} from 0 to {self._last_row}"
        checks.demand("row", (rows <= self._last_row) & (rows % self._rows == 0), allowed, rows)
        right = np.where(rows == self._last_row, self._last_bytes, self._full_bytes)
        checks.demand("size", lengths == right, "the size that belongs to the row", lengths)
        return checks.result()

    def numbers(self, headers: np.ndarray) -> np.ndarray:
        return headers["first_row"] // self._rows

    def keys(self, headers: np.ndarray) -> np.ndarray:
        return headers["key"]

    def tags(self, headers: np.ndarray) -> np.ndarray:
        return headers["key"]  # It has the scan.

    def describe(self, header: bytes, received: int) -> tuple[Identity, bytes]:
        del received  # The message has no room for it; acquisitions differ in their `scan_id`.
        _, _, rows, place, scan_id, index, status, _, times, sync_time, scan_time = _GIGAFROST_FIELDS.unpack(
            header
        )
        message = _GIGAFROST_MESSAGE.pack(
            index,
            self.n_packets,
            self._module,
            rows & 1,
            place >> 5 & 1,
            place >> 2 & 7,
            place >> 6,
            self._link_set,
            bool(status & self._do_not_store),
            scan_id,
            self._geometry.module_width,
            self._geometry.module_height,
            scan_time,
            sync_time,
            times & 2**TIMESTAMP_BITS - 1,
            times >> TIMESTAMP_BITS,
        )
        key = scan_id | index << 32
        return Identity(key, index, scan_id, times, key), message

    def misplaced(self, headers: np.ndarray) -> str:
        del headers  # Packets of another quadrant or link are not valid.
        return ""
