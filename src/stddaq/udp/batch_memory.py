"""The memory of a batch of datagrams, and the structures that tell the kernel where it is. No I/O."""

from __future__ import annotations

import numpy as np

from stddaq.udp.socket_structures import ADDRESS, IOVEC, MESSAGE, addresses

# More cost less Python per datagram, as long as they stay in the cache until they are copied.
BATCH = 128
# Control messages, each after a struct cmsghdr of 16 bytes: if asked for, when the datagram arrived, in
# seconds and nanoseconds; then how many datagrams the socket has dropped, which is left out until it has
# dropped one.
_TIME_BYTES, _DROPPED_BYTES = 32, 24


class BatchMemory:
    """Headers and payloads of up to `BATCH` datagrams, as arrays.

    Attributes:
        headers, payloads, lengths: of the datagrams of the last batch. `lengths` are those on the wire, also
            if header and payload are longer than the arrays. `payloads` are those that were not received
            elsewhere.
        times: when they arrived, by the kernel's clock, if asked for: arrays of (seconds, nanoseconds).
        dropped: how many datagrams the socket had dropped, in the first column.
        messages, iovecs, controls: the structures of recvmmsg(2).
        is_aimed: the payloads of the next batch do not go into `payloads`.
        time_bytes: of the control messages of a datagram until the socket has dropped one.
    """

    def __init__(self, header: np.dtype, payload_bytes: int, *, has_times: bool = False) -> None:
        self.headers = np.zeros(BATCH, header)
        self.payloads = np.zeros((BATCH, payload_bytes), np.uint8)
        self.messages = np.zeros(BATCH, MESSAGE)
        self.time_bytes = _TIME_BYTES if has_times else 0
        self.controls = np.zeros((BATCH, self.time_bytes + _DROPPED_BYTES), np.uint8)
        self.dropped = self.controls[:, self.time_bytes + 16 :].view(np.uint32)
        self._senders, self.iovecs = np.zeros(BATCH, ADDRESS), np.zeros((BATCH, 2), IOVEC)
        self.lengths = self.messages["bytes"]
        self.times = (
            self.controls[:, 16:32].view(np.int64) if has_times else np.zeros((BATCH, 4), np.int64)[:, :2]
        )
        self.is_aimed = False
        self._set_up_messages()

    def _set_up_messages(self) -> None:
        iovecs, messages = self.iovecs, self.messages
        for column, array in enumerate((self.headers, self.payloads)):
            iovecs["base"][:, column] = addresses(array)
            iovecs["bytes"][:, column] = array.strides[0]
        self._bases, self._offsets = iovecs["base"][:, 1], iovecs["base"][:, 1] - iovecs["base"][0, 1]
        messages["iovecs"], messages["n_iovecs"] = addresses(iovecs), 2
        messages["control"], messages["name"] = addresses(self.controls), addresses(self._senders)
        messages["control_bytes"], messages["name_bytes"] = self.controls.shape[1], ADDRESS.itemsize

    def aim(self, place: np.ndarray | None) -> int:
        """Let the next payloads go into the rows of an array, or `payloads`. Return how many have room."""
        if place is None and not self.is_aimed:
            return BATCH
        self.is_aimed = place is not None
        rows = self.payloads if place is None else place
        n = min(BATCH, len(rows))
        np.add(self._offsets[:n], rows.__array_interface__["data"][0], out=self._bases[:n])
        return n

    def n_dropped(self, n: int) -> int | None:
        """Return how many datagrams the socket has dropped, if any, after it has received `n`."""
        # The kernel replaces sizes by what it has used.
        control_bytes = self.messages["control_bytes"]
        total = int(self.dropped[n - 1, 0]) if control_bytes[n - 1] > self.time_bytes else None
        control_bytes[:n] = self.controls.shape[1]
        return total

    def sender(self, i: int) -> str:
        """Return the address of the sender of the i-th datagram."""
        sender = self._senders[i]
        return f"{'.'.join(map(str, sender['address']))}:{sender['port']}"
