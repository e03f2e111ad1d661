"""The headers and sizes of packets in order. No I/O."""

from __future__ import annotations

import numpy as np


class PacketSequence:
    """The headers and sizes of the packets of a frame in order, to recognise valid ones at low cost."""

    def __init__(self, numbers: np.ndarray, field: str, lengths: np.ndarray) -> None:
        """`numbers`: headers with the packets' places in `field`, all else 0.

        `lengths` in bytes, with the header.
        """
        self._n_packets, self._lengths = len(numbers), lengths
        self._words = np.frombuffer(numbers.tobytes(), np.uint64)
        self._words_per_header = len(self._words) // len(numbers)
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
        n, size = len(headers), self._words_per_header
        end = start + n
        if end > self._n_packets:
            return False
        # Without their places, the headers are equal.
        words = np.frombuffer(headers.tobytes(), np.uint64) ^ self._words[start * size : end * size]
        return words.tobytes() == first * n and lengths.tobytes() == self._lengths[start:end].tobytes()
