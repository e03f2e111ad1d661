"""Consumers of a metadata stream, which read every announced image from its ring buffer in this process."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Self

import numpy as np
import zmq
from support.processes.deployment import WAIT_TIMEOUT_S, Deployment, wait_until

from stddaq.closing import Closing
from stddaq.config import DetectorConfig
from stddaq.dataplane.connections import connection_changes, open_socket, watch_connections
from stddaq.dataplane.endpoints import metadata_stream
from stddaq.dataplane.metadata import ImageMetadata
from stddaq.dataplane.ring_buffer import RingBuffer


@dataclass(frozen=True)
class ReceivedImage:
    """One announcement and a copy of the announced bytes.

    Attributes:
        is_held: whether the slot held the image before and after it was copied.
    """

    metadata: ImageMetadata
    content: bytes
    is_held: bool
    config: DetectorConfig

    @property
    def image_id(self) -> int:
        return self.metadata.image_id

    @property
    def status(self) -> int:
        return self.metadata.status

    @property
    def pixels(self) -> np.ndarray:
        """Return the content as an image (height, width)."""
        return np.frombuffer(self.content, self.config.dtype).reshape(self.config.image_shape)


class ImageReader(Closing):
    """Subscribes to the stream of `suffix` and reads its images; a context manager."""

    def __init__(
        self, deployment: Deployment, suffix: str = "image", config: DetectorConfig | None = None
    ) -> None:
        self.config = config or DetectorConfig.parse(deployment.config)
        self._context = zmq.Context()
        self._socket = open_socket(self._context, zmq.SUB)
        self._socket.subscribe(b"")
        self._monitor = watch_connections(self._socket)
        self._socket.connect(metadata_stream(self.config.detector_name, suffix))
        self._ring = RingBuffer(self.config, suffix)

    def receive(self, n_images: int, timeout: float = WAIT_TIMEOUT_S) -> list[ReceivedImage]:
        """Return the next `n_images` images. Fail when they do not arrive within `timeout` seconds."""
        deadline = time.monotonic() + timeout
        images: list[ReceivedImage] = []
        while len(images) < n_images:
            image = self.receive_one(deadline - time.monotonic())
            assert image is not None, f"{len(images)} of {n_images} images within {timeout} s"
            images.append(image)
        return images

    def receive_one(self, timeout: float) -> ReceivedImage | None:
        """Return the next image, or None when none arrives within `timeout` seconds."""
        if not self._socket.poll(max(0, int(timeout * 1000))):
            return None
        metadata = ImageMetadata.FromString(self._socket.recv())
        image_id, sequence = metadata.image_id, metadata.sequence
        was_held = self._ring.holds(image_id, sequence)
        content = bytes(self._ring.slot(image_id)[: metadata.size])
        return ReceivedImage(
            metadata, content, was_held and self._ring.holds(image_id, sequence), self.config
        )

    def close(self) -> None:
        self._socket.disable_monitor()
        self._context.destroy(linger=0)
        self._ring.close()


class StreamReader(ImageReader):
    """An `ImageReader` of a running publisher; entering it waits until the publisher has the subscription."""

    _is_connected = False

    def wait_for_publisher(self, is_there: bool = True) -> None:
        """Wait until a publisher has the subscription, or has disconnected."""

        def has_changed() -> bool:
            for connected in connection_changes(self._monitor):
                self._is_connected = connected
            return self._is_connected == is_there

        wait_until(has_changed, what=f"connected: {is_there}")
        # libzmq sends subscriptions to a restarted publisher only while this thread polls the socket; the
        # publisher needs a moment to act on them.
        self._socket.poll(100)

    def __enter__(self) -> Self:
        self.wait_for_publisher()
        return self
