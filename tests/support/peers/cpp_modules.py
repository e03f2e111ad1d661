"""Stand-ins for the std_daq services (C++) of detectors that send packets, for modules of `EIGER`.

Their rings have no cursor, receivers fill the unused bytes of their messages with zeros, and converters pass
messages on as they are.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zmq
from support.peers.cpp_services import CppRing, Names

from stddaq.closing import Closing
from stddaq.wire.std_daq import image_metadata_pb2 as images_pb

FRAME_SHAPE = (256, 512)
FRAME_SLOTS = 1000
MESSAGE_BYTES = 64
# Id, missing packets, module, bit depth, then the position of the header.
_EIGER_MESSAGE = struct.Struct("<QQHHHH")
_RECEIVE_TIMEOUT_MS = 60_000


class _FrameRing:
    """The frames of one module, 8 bit, mapped without locks or checks."""

    def __init__(self, names: Names, module: int) -> None:
        self._path = Path("/dev/shm") / f"{names.detector_name}-{module}"
        self._created = not self._path.exists()
        size = -(-FRAME_SLOTS * FRAME_SHAPE[0] * FRAME_SHAPE[1] // 2**21) * 2**21
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o777)
        os.ftruncate(fd, size)
        self._map = mmap.mmap(fd, size)
        os.close(fd)

    def _start(self, frame_id: int) -> int:
        return frame_id % FRAME_SLOTS * FRAME_SHAPE[0] * FRAME_SHAPE[1]

    def write(self, frame_id: int, pixels: np.ndarray) -> None:
        start = self._start(frame_id)
        self._map[start : start + pixels.size] = pixels.tobytes()

    def read(self, frame_id: int) -> np.ndarray:
        start = self._start(frame_id)
        content = self._map[start : start + FRAME_SHAPE[0] * FRAME_SHAPE[1]]
        return np.frombuffer(content, np.uint8).reshape(FRAME_SHAPE)

    def close(self) -> None:
        self._map.close()
        if self._created:
            self._path.unlink(missing_ok=True)


class _Sockets(Closing):
    """The sockets of one service; the files of bound ones are removed at the end."""

    def __init__(self) -> None:
        self._context = zmq.Context()
        self._bound: list[str] = []

    def open(self, kind: int, *, bind: str = "", connect: str = "") -> zmq.Socket[bytes]:
        socket = self._context.socket(kind)
        socket.rcvtimeo = _RECEIVE_TIMEOUT_MS
        if bind:
            socket.bind(bind)
            self._bound.append(bind)
        else:
            socket.connect(connect)
        return socket

    def close(self) -> None:
        self._context.destroy(linger=1000)
        for endpoint in self._bound:
            Path(endpoint.removeprefix("ipc://")).unlink(missing_ok=True)


class CppReceiver(Closing):
    """Publishes the frames of one module."""

    def __init__(self, config: Mapping[str, Any], module: int) -> None:
        names = Names(config)
        self._module, self._ring, self._sockets = module, _FrameRing(names, module), _Sockets()
        self._socket = self._sockets.open(zmq.XPUB, bind=names.endpoint(f"{module}"))

    def wait_for_converter(self) -> None:
        self._socket.recv()

    def publish(self, frame_id: int, pixels: np.ndarray, n_missing: int = 0) -> None:
        self._ring.write(frame_id, pixels)
        message = _EIGER_MESSAGE.pack(frame_id, n_missing, self._module, 8, 0, 0)
        self._socket.send(message.ljust(MESSAGE_BYTES, b"\0"))

    def close(self) -> None:
        self._sockets.close()
        self._ring.close()


class CppConverter(Closing):
    """Puts frames into the images. `place` puts the pixels of one frame into an image."""

    def __init__(
        self, config: Mapping[str, Any], module: int, place: Callable[[np.ndarray, np.ndarray], None]
    ) -> None:
        names = Names(config)
        self._place, self._frames = place, _FrameRing(names, module)
        self._images, self._sockets = CppRing(names), _Sockets()
        self._frame_stream = self._sockets.open(zmq.SUB, connect=names.endpoint(f"{module}"))
        self._frame_stream.subscribe(b"")
        self._sync = self._sockets.open(zmq.PUSH, connect=names.endpoint("sync"))

    def convert(self, n_frames: int) -> None:
        """Convert the next frames."""
        for _ in range(n_frames):
            message = self._frame_stream.recv()
            frame_id = int.from_bytes(message[:8], "little")
            self._place(self._images.slot(frame_id), self._frames.read(frame_id))
            self._sync.send(message)

    def close(self) -> None:
        self._sockets.close()
        self._images.close()
        self._frames.close()


class CppSync(Closing):
    """Announces images of which all modules have arrived."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._names, self._n_modules = Names(config), config["n_modules"]
        self._sockets = _Sockets()
        self._converted = self._sockets.open(zmq.PULL, bind=self._names.endpoint("sync"))
        self._socket = self._sockets.open(zmq.XPUB, bind=self._names.endpoint("image"))

    def wait_for_subscriber(self) -> None:
        self._socket.recv()

    def announce(self, n_images: int) -> Sequence[bytes]:
        """Announce the next images when all their modules have arrived. Return the messages of the frames."""
        messages: list[bytes] = []
        arrived: dict[int, int] = {}
        while n_images:
            messages.append(self._converted.recv())
            image_id = int.from_bytes(messages[-1][:8], "little")
            arrived[image_id] = arrived.get(image_id, 0) + 1
            if arrived[image_id] == self._n_modules:
                self._announce(image_id)
                n_images -= 1
        return messages

    def _announce(self, image_id: int) -> None:
        names = self._names
        image = images_pb.ImageMetadata(
            image_id=image_id,
            height=names.shape[0],
            width=names.shape[1],
            size=names.image_bytes,
            dtype=names.dtype_code,  # pyright: ignore[reportArgumentType]
            status=images_pb.good_image,
            eg=images_pb.EGImageMetadata(),
        )
        self._socket.send(image.SerializeToString())

    def close(self) -> None:
        self._sockets.close()
