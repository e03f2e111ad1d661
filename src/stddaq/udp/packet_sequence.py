"""The headers and sizes of packets in order. No I/O."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class NextOpening:
    """How the header of the next frame's first packet can be recognised by that of the last frame.

    Attributes:
        same: header with the bits set that are equal in both.
        id_offset, id_type: its field with the id, a number or a double.
        highest_id: ids up to it are exact there.
    """

    same: np.ndarray
    id_offset: int
    id_type: np.dtype
    highest_id: int

    @classmethod
    def of(cls, header: np.dtype, same: dict[str, int], id_field: str, highest_id: int) -> NextOpening:
        """Return that of a header in which these bits, by field, are the same."""
        fields = np.zeros(1, header)
        for name, bits in same.items():
            fields[name] = bits
        ids = fields[id_field]
        return cls(fields, ids.ctypes.data - fields.ctypes.data, ids.dtype, highest_id)


class PacketSequence:
    """The headers and sizes of the packets of a frame in order, to recognise valid ones at low cost.

    Attributes:
        words: the headers, as 64-bit words (packets, words), with the packets' places and all else 0.
        lengths: in bytes, with the header.
    """

    def __init__(self, numbers: np.ndarray, field: str, lengths: np.ndarray) -> None:
        """`numbers`: headers with the packets' places in `field`, all else 0.

        `lengths` in bytes, with the header.
        """
        self.lengths = lengths
        self.words = np.frombuffer(numbers.tobytes(), np.uint64).reshape(len(numbers), -1)
        place = np.zeros(1, numbers.dtype)
        place[field] = np.iinfo(place[field].dtype).max
        self._place = int.from_bytes(place.tobytes(), "little")

    def first(self, header: bytes) -> bytes:
        """Return the header of the first packet of the frame of a valid one."""
        without_place = int.from_bytes(header, "little") & ~self._place
        return without_place.to_bytes(len(header), "little")

    def continues(self, first: bytes, start: int, headers: np.ndarray, lengths: np.ndarray) -> bool:
        """Return whether these are the packets from place `start` on of a frame, without a gap.

        `first`: header of the frame's first packet.
        """
        n = len(headers)
        end = start + n
        if end > len(self.words):
            return False
        # Without their places, the headers are equal.
        words = np.frombuffer(headers.tobytes(), np.uint64) ^ self.words[start:end].ravel()
        return words.tobytes() == first * n and lengths.tobytes() == self.lengths[start:end].tobytes()
