"""A frame that is being received: its pixels, and which packets have arrived. No I/O."""

from __future__ import annotations

import numpy as np

from stddaq.udp.frame_order import Identity
from stddaq.udp.packets import Packets

# Numbers of packets in order. No frame has more.
_NUMBERS = np.arange(512)


class Frame:
    """The places for the pixels of a frame, and which packets have arrived.

    `next` follows the highest packet that has arrived. `header`: of the packet that arrived first;
    `received`: when, in ns since 1970, of an open frame; `first_header`: of its first packet, if needed yet.
    `is_overtaken`: a frame that it has skipped arrived after it.
    """

    __slots__ = (
        *("first_header", "header", "identity", "is_complete", "is_overtaken", "last", "last_at"),
        *("message", "n_received", "next", "received", "rows", "seen"),
    )

    def __init__(self, identity: Identity, message: bytes, pixels: np.ndarray, packets: Packets) -> None:
        self.identity, self.message = identity, bytearray(message)
        self.seen = np.zeros(packets.n_packets, bool)
        self.n_received, self.next, self.is_complete, self.last_at = 0, 0, False, 0.0
        self.is_overtaken, self.received = False, 0
        self.first_header = self.header = b""
        self.rows = rows_of(pixels, packets)
        is_equal = len(self.rows) == packets.n_packets
        self.last = None if is_equal else pixels[self.rows.size :][: packets.last_bytes]

    def put(self, numbers: np.ndarray, payloads: np.ndarray) -> tuple[int, int]:
        """Put the pixels of some packets into their places, unless such a packet has arrived before.

        Return how many of them had, and how many came after the frame was complete.
        """
        n, completing = len(numbers), len(numbers) - 1
        # Packets in order differ.
        is_in_order = n == 1 or bool((np.diff(numbers.astype(np.int64)) > 0).all())
        if not is_in_order or self.seen[numbers].any():
            firsts = np.unique(numbers, return_index=True)[1]
            new = np.sort(firsts[~self.seen[numbers[firsts]]])
            completing = int(new.max(initial=-1))
            numbers, payloads = numbers[new], payloads[new]
        self._put(numbers, payloads)
        self.n_received += len(numbers)
        self.is_complete = self.n_received == len(self.seen)
        n_repeated = n - len(numbers)
        n_late = n - 1 - completing if n_repeated and self.is_complete else 0
        return n_repeated - n_late, n_late

    def put_next(self, payloads: np.ndarray, *, in_place: bool) -> None:
        """Put the pixels of the packets from `next` on into their places, unless they are there."""
        first, n = self.next, len(payloads)
        self.next = end = first + n
        if not in_place:
            n_rows = len(self.rows)
            self.rows[first:end] = payloads[: n_rows - first, : self.rows.shape[1]]
            if self.last is not None and end > n_rows:
                self.last[:] = payloads[-1, : len(self.last)]
        self.seen[first:end] = True
        self.n_received += n
        self.is_complete = self.n_received == len(self.seen)

    def _put(self, numbers: np.ndarray, payloads: np.ndarray) -> None:
        if self.last is not None and len(numbers) and int(numbers[-1]) == len(self.rows):
            self._put_last(payloads[-1])
            numbers, payloads = numbers[:-1], payloads[:-1]
        if n := len(numbers):
            first, last = int(numbers[0]), int(numbers[-1])
            in_order = last - first == n - 1 and (numbers == _NUMBERS[first : last + 1]).all()
            self.next = max(self.next, 1 + (last if in_order else int(numbers.max())))
            self._put_equal(slice(first, last + 1) if in_order else numbers, payloads)

    def _put_equal(self, place: slice | np.ndarray, payloads: np.ndarray) -> None:
        """Put packets into their places, a row of packets with one copy."""
        if self.last is not None and isinstance(place, np.ndarray):
            is_last = place == len(self.rows)
            if is_last.any():
                self._put_last(payloads[is_last.argmax()])
                place, payloads = place[~is_last], payloads[~is_last]
        self.rows[place] = payloads[:, : self.rows.shape[1]]
        self.seen[place] = True

    def _put_last(self, payload: np.ndarray) -> None:
        """Put the last packet, which is shorter, into its place."""
        if self.last is not None:
            self.last[:] = payload[: len(self.last)]
            self.seen[-1], self.next = True, len(self.seen)

    def take_over(self, other: Frame) -> None:
        """Continue with the packets that have arrived for the same frame in other memory."""
        self.rows[:] = other.rows
        if self.last is not None and other.last is not None:
            self.last[:] = other.last
        self.seen[:] = other.seen
        self.n_received, self.next = other.n_received, other.next
        self.is_complete, self.last_at = other.is_complete, other.last_at

    def clear_missing(self) -> int:
        """Set the pixels of packets that have not arrived to 0. Return the number of these packets."""
        if self.is_complete:
            return 0
        missing = ~self.seen
        self.rows[missing[: len(self.rows)]] = 0
        if self.last is not None and missing[-1]:
            self.last[:] = 0
        return len(self.seen) - self.n_received


def rows_of(pixels: np.ndarray, packets: Packets) -> np.ndarray:
    """Return the places of the packets of equal size in the memory of a frame."""
    n_equal = packets.n_packets - (packets.last_bytes != packets.row_bytes)
    return pixels[: n_equal * packets.row_bytes].reshape(n_equal, packets.row_bytes)
