"""Messages on their way to viewers, without I/O: one queue per viewer, bounded in bytes.

A message that waits for several viewers is shared, and its image buffer is reused after the last of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import islice

from stddaq.wire.zmtp import Buffer, ZmtpError, frames

# Per viewer: eight images of 4 megapixels, a tenth of a second of a fast stream. One image always fits.
MAX_QUEUED_BYTES = 64 * 2**20
# The limit for many small images, or for answers to the pings of a peer that does not read.
MAX_QUEUED_BUFFERS = 500_000
_BUFFERS_PER_SEND = 64


class ImageBuffers:
    """Buffers for copies of images, reused after the last viewer has received its image."""

    def __init__(self, n_bytes: int) -> None:
        self._n_bytes = n_bytes
        self._n_kept = max(2, MAX_QUEUED_BYTES // n_bytes)
        self._free: list[memoryview] = []

    def take(self) -> memoryview:
        """Return a buffer of `n_bytes` with undefined content."""
        return self._free.pop() if self._free else memoryview(bytearray(self._n_bytes))

    def give_back(self, buffer: memoryview) -> None:
        """Make a buffer available again. The caller must not use it any more."""
        if len(self._free) < self._n_kept:
            self._free.append(buffer)


class QueuedMessage:
    """A message for several viewers. The last `release` returns its image buffer."""

    __slots__ = ("_image", "_n_users", "_pool", "n_bytes", "wire")

    def __init__(self, parts: Sequence[Buffer], image: memoryview | None, pool: ImageBuffers) -> None:
        """`image`: the buffer of the pool that the parts use. The caller is the first user."""
        self.wire = [memoryview(buffer) for buffer in frames(parts)]
        self.n_bytes = sum(buffer.nbytes for buffer in self.wire)
        self._image, self._pool = image, pool
        self._n_users = 1

    def use(self) -> None:
        """Add a user."""
        self._n_users += 1

    def release(self) -> None:
        """Remove a user."""
        self._n_users -= 1
        if not self._n_users and self._image is not None:
            self._pool.give_back(self._image)


class ViewerQueue:
    """The messages that wait to be sent to one viewer.

    Attributes:
        n_sent: messages that were sent completely.
        n_dropped: messages that did not fit.
    """

    def __init__(self) -> None:
        self.n_sent = self.n_dropped = 0
        self._buffers: deque[tuple[memoryview, QueuedMessage | None]] = deque()
        self._n_queued_bytes = 0

    @property
    def is_empty(self) -> bool:
        """Whether everything was sent."""
        return not self._buffers

    def offer(self, message: QueuedMessage) -> bool:
        """Queue a message, or drop it if too many bytes wait already. Return whether it was queued."""
        if self._n_queued_bytes and self._n_queued_bytes + message.n_bytes > MAX_QUEUED_BYTES:
            self.n_dropped += 1
            return False
        message.use()
        self._n_queued_bytes += message.n_bytes
        last = len(message.wire) - 1
        for position, buffer in enumerate(message.wire):
            self._buffers.append((buffer, message if position == last else None))
        return True

    def answer(self, content: bytes) -> None:
        """Queue bytes of the protocol after the last message. Raise `ZmtpError` if too much waits."""
        if content:
            self._buffers.append((memoryview(content), None))
            if len(self._buffers) > MAX_QUEUED_BUFFERS:
                raise ZmtpError("more pings than the peer reads answers")

    def next_buffers(self) -> list[memoryview]:
        """Return the bytes to send next."""
        return [buffer for buffer, _ in islice(self._buffers, _BUFFERS_PER_SEND)]

    def advance(self, n_bytes: int) -> None:
        """Remove `n_bytes` that were sent."""
        buffers = self._buffers
        while n_bytes:
            buffer, message = buffers[0]
            if n_bytes < buffer.nbytes:
                buffers[0] = (buffer[n_bytes:], message)
                return
            n_bytes -= buffer.nbytes
            buffers.popleft()
            if message is not None:
                self.n_sent += 1
                self._n_queued_bytes -= message.n_bytes
                message.release()

    def clear(self) -> None:
        """Release all messages."""
        for _, message in self._buffers:
            if message is not None:
                message.release()
        self._buffers.clear()
        self._n_queued_bytes = 0
