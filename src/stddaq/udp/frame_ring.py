"""The frames of one module between its receiver and its converter: a ring buffer, and a stream of messages.

The ring `<detector_name>-<module>` has 1000 slots; frame `id` is in slot `id % 1000`. The stream of the same
name (PUB, SUB) announces each frame with a message of 64 bytes (see `frame_message`). A cursor stands beside
the ring, as beside every ring of stddaq, so that a converter notices when its slot was overwritten.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import zmq

from stddaq.closing import Closing
from stddaq.config import DetectorConfig
from stddaq.dataplane.connections import open_socket
from stddaq.dataplane.endpoints import metadata_stream
from stddaq.dataplane.ipc_sockets import Connection
from stddaq.dataplane.ring_buffer import RingBuffer
from stddaq.dataplane.ring_layout import RingGeometry
from stddaq.dataplane.ring_publisher import RingPublisher
from stddaq.udp.frame_message import SEQUENCE_MASK, SEQUENCE_OFFSET, frame_layout, parse_frame
from stddaq.udp.geometry import frame_bytes

FRAME_SLOTS = 1000
_SEQUENCE = struct.Struct("<I")
_UINT8 = 1


def _geometry(config: DetectorConfig) -> RingGeometry:
    n_bytes = frame_bytes(config)
    return RingGeometry(n_bytes, FRAME_SLOTS, 1, n_bytes, _UINT8)


class FrameMemory(NamedTuple):
    """Where frames go, as arrays.

    `slots`: bytes (slots, bytes of a slot), or images (slots, height, width); `cursor`: words of the cursor
    segment (see `ring_buffer`).
    """

    slots: np.ndarray
    cursor: np.ndarray


def image_memory(ring: RingBuffer) -> FrameMemory:
    """Return the slots of a ring as images, and its cursor; to be released before the ring is closed."""
    n_slots = ring.geometry.n_slots
    pixels = np.frombuffer(ring.memory[: n_slots * ring.geometry.image_bytes], ring.dtype)
    return FrameMemory(pixels.reshape(n_slots, *ring.shape), np.frombuffer(ring.cursor, np.uint64))


class FramePublisher(RingPublisher):
    """The receiver's end: it waits for no converter.

    Attributes:
        frames: the ring, for code that opens and commits slots itself. Replaced with the ring; do not keep.
    """

    def __init__(self, config: DetectorConfig, module: int) -> None:
        """Bind the stream and attach to the ring of a module.

        Raise `EndpointError` when another receiver has the module, `GeometryError` when the ring has other
        slots, or there is no memory for it.
        """
        super().__init__(config, str(module), geometry=_geometry(config))

    def _use(self, ring: RingBuffer) -> None:
        super()._use(ring)
        self.frames = FrameMemory(self._slot_bytes, np.frombuffer(ring.cursor, np.uint64))

    def begin(self, frame_id: int) -> np.ndarray:
        """Open the slot of a frame: an array of bytes to fill. Converters do not trust it until `commit`."""
        self._ring.begin(frame_id)
        return self._slot_bytes[frame_id % FRAME_SLOTS]

    def commit(self, message: np.ndarray) -> None:
        """Announce the frame put into its slot since `begin`.

        `message` is a 0-dimensional array of `frame_layout`.
        """
        self.commit_bytes(int(message["id"]), bytearray(message.tobytes()))

    def commit_bytes(self, frame_id: int, message: bytearray) -> None:
        """Announce the frame put into its slot since `begin`. Sets `sequence` in the message, 64 bytes."""
        while not (sequence := self._ring.commit(frame_id) & SEQUENCE_MASK):
            self._ring.begin(frame_id)  # 0 means that there is no number.
        _SEQUENCE.pack_into(message, SEQUENCE_OFFSET, sequence)
        self.send(message)

    def send(self, message: bytes | bytearray) -> None:
        """Announce a frame whose slot was committed."""
        self.socket.send(message)

    def close(self) -> None:
        """Deliver announcements on their way; release the socket and the ring."""
        del self.frames
        super().close()


class FrameSubscriber(Closing):
    """The converter's end: announced frames, and their bytes in the ring.

    Attributes:
        socket: SUB socket, for pollers.
        frames: the ring, for code that checks slots itself. Replaced with the ring; do not keep.
        n_malformed: messages that announce no frame.
    """

    def __init__(self, config: DetectorConfig, module: int) -> None:
        """Attach to the ring of a module and subscribe. Raise `EndpointError` and `GeometryError`."""
        self._layout = frame_layout(config.detector_type)
        self.n_malformed = 0
        self._use(RingBuffer(config, str(module), geometry=_geometry(config)))
        self._context = zmq.Context()
        self.socket = open_socket(self._context, zmq.SUB)
        self.socket.subscribe(b"")
        self._connection = Connection(self.socket, metadata_stream(config.detector_name, str(module)))

    def _use(self, ring: RingBuffer) -> None:
        slots, cursor = image_memory(ring)
        self.frames = FrameMemory(slots.reshape(FRAME_SLOTS, -1), cursor)
        self._ring = ring

    @property
    def monitor(self) -> zmq.Socket:
        """Socket that is readable while connections have changed since the last `receive`."""
        return self._connection.monitor

    def receive(self, limit: int, before: Sequence[bytes] = ()) -> Iterator[np.ndarray]:
        """Yield the messages of the frames that were announced, at most `limit`: 0-dimensional arrays.

        The array is read-only; `tobytes` gives the message with all its 64 bytes. `before`: messages that
        were received from `socket` since the last call.
        """
        for received in self._connection.receive(limit, before):
            message = parse_frame(received, self._layout)
            if message is None:
                self.n_malformed += 1
            else:
                yield message

    def frame(self, frame_id: int) -> np.ndarray:
        """Return the slot of a frame as an array of bytes, not copied. Release it before `check`."""
        return np.frombuffer(self._ring.slot(frame_id), np.uint8)

    def holds(self, message: np.ndarray) -> bool:
        """Return whether the slot holds the complete frame of a message. Call it before and after a copy.

        A message without `sequence`, of a C++ receiver, says nothing: True.
        """
        sequence = int(message["sequence"])
        return not sequence or self._ring.stamp(int(message["id"])) & SEQUENCE_MASK == sequence

    def check(self) -> None:
        """Attach to a new ring if this one was removed, and log why the receiver refuses the connection.

        Call it at least once a second, while no frame is in use.
        """
        self._connection.check()
        self._ring.check(self._use)

    def close(self) -> None:
        """Unsubscribe and detach."""
        del self.frames
        self._context.destroy(linger=0)
        self._ring.close()
