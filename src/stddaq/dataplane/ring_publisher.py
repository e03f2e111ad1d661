"""The publishing end of a ring buffer and its stream: what publishers of images and of frames share."""

from __future__ import annotations

import numpy as np

from stddaq.closing import Closing
from stddaq.config import DetectorConfig
from stddaq.dataplane.metadata_publisher import MetadataPublisher
from stddaq.dataplane.ring_buffer import RingBuffer
from stddaq.dataplane.ring_layout import RingGeometry


class RingPublisher(Closing):
    """Owns the writing side of a ring buffer and the bound socket of its stream.

    Attributes:
        endpoint: where the stream is bound.
        socket: XPUB socket of the stream; becomes readable when the subscriptions change.
    """

    def __init__(
        self, config: DetectorConfig, suffix: str, *, geometry: RingGeometry | None = None, n_parts: int = 0
    ) -> None:
        """Bind the stream and attach to the ring buffer of `suffix`; see `RingBuffer`.

        Raise `EndpointError` when another source publishes there or has the ring buffer, `GeometryError` when
        the ring buffer exists with another geometry, or there is no memory for it.
        """
        # The stream first: its lock names a source that is already there.
        self._stream = MetadataPublisher(config, suffix)
        self.endpoint, self.socket = self._stream.endpoint, self._stream.socket
        try:
            self._use(RingBuffer(config, suffix, as_source=True, geometry=geometry, n_parts=n_parts))
        except BaseException:
            self._stream.close()
            raise

    def _use(self, ring: RingBuffer) -> None:
        n_slots, n_bytes = ring.geometry.n_slots, ring.geometry.image_bytes
        self._slot_bytes = np.frombuffer(ring.memory[: n_slots * n_bytes], np.uint8).reshape(n_slots, n_bytes)
        # Last: a thread that opens a slot of this ring meanwhile must not put the pixels into another one.
        self._ring = ring

    def count_subscribers(self) -> int:
        """Read the subscriptions that have arrived, and return how many there are.

        Call it at least once a second: it also attaches to a new ring buffer if this one was removed. Raise
        `GeometryError` or `EndpointError` if another service has taken its place.
        """
        self._ring.check(self._use)
        return self._stream.count_subscribers()

    def wait_for_subscribers(self, count: int, timeout: float) -> bool:
        """Wait up to `timeout` seconds for `count` subscriptions. Return whether they have arrived."""
        return self._stream.wait_for_subscribers(count, timeout)

    def close(self) -> None:
        """Deliver announcements on their way, for up to a second; release the socket and the ring buffer."""
        self._stream.close()
        del self._slot_bytes
        self._ring.close()
