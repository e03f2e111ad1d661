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
from stddaq.udp.batch_memory import BatchMemory

# What the std_daq services (C++) ask for.
SOCKET_BUFFER_BYTES = 105_548_800

# Not in Python's socket module, see socket(7) and linux/asm-generic/socket.h.
_SO_RCVBUFFORCE = 33
_SO_TIMESTAMPNS = 35
_SO_RXQ_OVFL = 40
_BUFFER_LIMIT = Path("/proc/sys/net/core/rmem_max")

_recvmmsg = ctypes.CDLL(None, use_errno=True).recvmmsg
_recvmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p)
RECEIVE_FLAGS = socket.MSG_DONTWAIT | socket.MSG_TRUNC


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
        memory: of the datagrams of the last `receive`.
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
        """Bind it. Raise `EndpointError`. The times of datagrams cost 3 % of a receiver's CPU time."""
        self.memory = BatchMemory(header, payload_bytes, has_times=has_times)
        self.n_dropped = self.n_calls = 0
        self._dropped_before = 0
        self._socket, self.buffer_bytes = bind_udp(address, buffer_bytes)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RXQ_OVFL, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, has_times)
        self.port: int = self._socket.getsockname()[1]
        self._arguments = self._socket.fileno(), self.memory.messages.ctypes.data

    def fileno(self) -> int:
        return self._socket.fileno()

    def receive(self, place: np.ndarray | None = None) -> int:
        """Receive what has arrived, up to `BATCH` datagrams. Return their number. Raise `OSError`.

        Their payloads go into the rows of `place`, and not more datagrams are received than it has rows; or
        into the memory of the batch.
        """
        limit = self.memory.aim(place)
        fd, messages = self._arguments
        n = _recvmmsg(fd, messages, limit, RECEIVE_FLAGS, None)
        if n <= 0:
            number = ctypes.get_errno()
            if number in (errno.EAGAIN, errno.EINTR):
                return 0
            raise OSError(number, os.strerror(number))
        self.n_calls += 1
        total = self.memory.n_dropped(n)
        if total is not None:
            self._count_dropped(total)
        return n

    def count(self, n_calls: int, n_dropped: int | None) -> None:
        """Count calls that others have made, and datagrams dropped until then, if that is known."""
        self.n_calls += n_calls
        if n_dropped is not None:
            self._count_dropped(n_dropped)

    def _count_dropped(self, total: int) -> None:
        """Count what was dropped until the last datagram; the kernel's number has 32 bits."""
        self.n_dropped += (total - self._dropped_before) % 2**32
        self._dropped_before = total

    def close(self) -> None:
        """Close it."""
        self._socket.close()


def buffer_limit() -> int:
    """Return the size that the system allows a socket's buffer to have (`net.core.rmem_max`)."""
    return int(_BUFFER_LIMIT.read_text())
