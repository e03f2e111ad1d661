"""A UDP socket that receives many datagrams with one system call (recvmmsg).

Headers and payloads go into arrays of their own, so that numpy looks at the headers of a batch at once.
Payloads go where the caller expects them to belong, so that they need no copy if they do. Nothing is done per
datagram in Python.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from pathlib import Path

import numpy as np

from stddaq.errors import EndpointError
from stddaq.udp.socket_structures import ADDRESS, IOVEC, MESSAGE, addresses

# More cost less Python per datagram, as long as they stay in the cache until they are copied.
BATCH = 128
# What the std_daq services (C++) ask for.
SOCKET_BUFFER_BYTES = 105_548_800

# Not in Python's socket module, see socket(7) and linux/asm-generic/socket.h.
_SO_RCVBUFFORCE = 33
_SO_TIMESTAMPNS = 35
_SO_RXQ_OVFL = 40
_BUFFER_LIMIT = Path("/proc/sys/net/core/rmem_max")

# Control messages, each after a struct cmsghdr of 16 bytes: if asked for, when the datagram arrived, in
# seconds and nanoseconds; then how many datagrams the socket has dropped, which is left out until it has
# dropped one.
_TIME_BYTES, _DROPPED_BYTES = 32, 24
_recvmmsg = ctypes.CDLL(None, use_errno=True).recvmmsg
_recvmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p)
_FLAGS = socket.MSG_DONTWAIT | socket.MSG_TRUNC


def bind_udp(address: tuple[str, int], buffer_bytes: int) -> tuple[socket.socket, int]:
    """Return a bound socket, and the size of its buffer. Raise `EndpointError`."""
    bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        bound.bind(address)
    except OSError as error:
        bound.close()
        place = f"udp://{address[0]}:{address[1]}"
        if error.errno == errno.EADDRINUSE:
            raise EndpointError(f"{place}: another process receives there; stop it") from error
        raise EndpointError(f"{place}: cannot be bound: {error.strerror or error}") from error
    try:
        # Beyond the limit of the system, if this process may.
        bound.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, buffer_bytes)
    except PermissionError:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
    # The kernel doubles the number for its own use.
    return bound, bound.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2


class BatchSocket:
    """A bound socket with the memory of one batch.

    Attributes:
        headers, payloads, lengths: of the datagrams of the last `receive`, as arrays of `BATCH`. `lengths`
            are those on the wire, also if header and payload are longer than the arrays. `payloads` are
            those that were not received elsewhere.
        times: when they arrived, by the kernel's clock, if asked for: arrays of (seconds, nanoseconds).
        buffer_bytes: size of the socket's buffer.
        n_dropped: datagrams that the kernel dropped, because that buffer was full.
        n_calls: calls of `receive` that returned datagrams.
    """

    def __init__(
        self,
        address: tuple[str, int],
        header: np.dtype,
        payload_bytes: int,
        buffer_bytes: int = SOCKET_BUFFER_BYTES,
        *,
        has_times: bool = False,
    ) -> None:
        """Bind it. Raise `EndpointError`. `times` cost 3 % of a receiver's CPU time."""
        self.headers = np.zeros(BATCH, header)
        self.payloads = np.zeros((BATCH, payload_bytes), np.uint8)
        self.n_dropped = self.n_calls = 0
        self._dropped_before = 0
        self._messages = np.zeros(BATCH, MESSAGE)
        self._time_bytes = _TIME_BYTES if has_times else 0
        self._controls = np.zeros((BATCH, self._time_bytes + _DROPPED_BYTES), np.uint8)
        self._dropped = self._controls[:, self._time_bytes + 16 :].view(np.uint32)
        self._senders, self._iovecs = np.zeros(BATCH, ADDRESS), np.zeros((BATCH, 2), IOVEC)
        self.lengths = self._messages["bytes"]
        self.times = self._controls[:, 16:32].view(np.int64) if has_times else np.zeros((BATCH, 2), np.int64)
        self._set_up_messages()
        self._socket, self.buffer_bytes = bind_udp(address, buffer_bytes)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RXQ_OVFL, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, has_times)
        self.port: int = self._socket.getsockname()[1]
        self._arguments = self._socket.fileno(), self._messages.ctypes.data

    def _set_up_messages(self) -> None:
        iovecs, messages = self._iovecs, self._messages
        for column, array in enumerate((self.headers, self.payloads)):
            iovecs["base"][:, column] = addresses(array)
            iovecs["bytes"][:, column] = array.strides[0]
        self._bases, self._offsets = iovecs["base"][:, 1], iovecs["base"][:, 1] - iovecs["base"][0, 1]
        self._is_aimed = False
        messages["iovecs"], messages["n_iovecs"] = addresses(iovecs), 2
        messages["control"], messages["name"] = addresses(self._controls), addresses(self._senders)
        messages["control_bytes"], messages["name_bytes"] = self._controls.shape[1], ADDRESS.itemsize

    def fileno(self) -> int:
        return self._socket.fileno()

    def receive(self, place: np.ndarray | None = None) -> int:
        """Receive what has arrived, up to `BATCH` datagrams. Return their number. Raise `OSError`.

        Their payloads go into the rows of `place`, and not more datagrams are received than it has rows; or
        into `payloads`.
        """
        limit = BATCH
        if place is not None or self._is_aimed:
            limit = self._aim(place)
        fd, messages = self._arguments
        n = _recvmmsg(fd, messages, limit, _FLAGS, None)
        if n <= 0:
            number = ctypes.get_errno()
            if number in (errno.EAGAIN, errno.EINTR):
                return 0
            raise OSError(number, os.strerror(number))
        self.n_calls += 1
        # The kernel replaces sizes by what it has used.
        control_bytes = self._messages["control_bytes"]
        if control_bytes[n - 1] > self._time_bytes:
            self._count_dropped(int(self._dropped[n - 1, 0]))
        control_bytes[:n] = self._controls.shape[1]
        return n

    def _aim(self, place: np.ndarray | None) -> int:
        """Let the next payloads go into the rows of an array. Return how many datagrams it has room for."""
        self._is_aimed = place is not None
        rows = self.payloads if place is None else place
        n = min(BATCH, len(rows))
        np.add(self._offsets[:n], rows.__array_interface__["data"][0], out=self._bases[:n])
        return n

    def _count_dropped(self, total: int) -> None:
        """Count what was dropped until the last datagram; the kernel's number has 32 bits."""
        self.n_dropped += (total - self._dropped_before) % 2**32
        self._dropped_before = total

    def sender(self, i: int) -> str:
        """Return the address of the sender of the i-th datagram."""
        sender = self._senders[i]
        return f"{'.'.join(map(str, sender['address']))}:{sender['port']}"

    def close(self) -> None:
        """Close it."""
        self._socket.close()


def buffer_limit() -> int:
    """Return the size that the system allows a socket's buffer to have (`net.core.rmem_max`)."""
    return int(_BUFFER_LIMIT.read_text())
