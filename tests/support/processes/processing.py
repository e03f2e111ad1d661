"""A reader of the streams of processing services, in the test's own process."""

from __future__ import annotations

import time
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
import zmq
from support.processes.deployment import Deployment, wait_until

from stddaq.config import DetectorConfig
from stddaq.dataplane.connections import connection_changes, open_socket, watch_connections
from stddaq.dataplane.endpoints import metadata_stream
from stddaq.dataplane.metadata import ImageMetadata
from stddaq.dataplane.ring_buffer import RingBuffer


@dataclass(frozen=True)
class PublishedImage:
    """One announcement of a stream, and a copy of the bytes that it announces."""

    metadata: ImageMetadata
    content: bytes
    is_held: bool
    """Whether the slot held the image before and after it was copied."""

    @property
    def image_id(self) -> int:
        return self.metadata.image_id

    @property
    def status(self) -> int:
        return self.metadata.status

    def pixels(self, config: DetectorConfig) -> np.ndarray:
        """Return the content as an image (height, width)."""
        return np.frombuffer(self.content, config.dtype).reshape(config.image_shape)


class StreamReader:
    """Subscribes to the stream of `suffix` and reads its images; a context manager.

    Entering it waits until the publisher has the subscription.
    """

    _is_connected = False

    def __init__(self, deployment: Deployment, suffix: str, config: DetectorConfig | None = None) -> None:
        self.config = config or DetectorConfig.parse(deployment.config)
        self._context = zmq.Context()
        self._socket = open_socket(self._context, zmq.SUB)
        self._socket.subscribe(b"")
        self._monitor = watch_connections(self._socket)
        self._socket.connect(metadata_stream(self.config.detector_name, suffix))
        self._ring = RingBuffer(self.config, suffix)

    def receive(self, n_images: int, timeout: float = 20.0) -> list[PublishedImage]:
        """Return the next `n_images` images. Fail when they do not arrive within `timeout` seconds."""
        deadline = time.monotonic() + timeout
        images: list[PublishedImage] = []
        while len(images) < n_images:
            remaining = max(0.0, deadline - time.monotonic())
            assert self._socket.poll(int(remaining * 1000)), f"{len(images)} of {n_images} images came"
            images.append(self._read(ImageMetadata.FromString(self._socket.recv())))
        return images

    def _read(self, metadata: ImageMetadata) -> PublishedImage:
        was_held = self._ring.holds(metadata.image_id, metadata.sequence)
        content = bytes(self._ring.slot(metadata.image_id)[: metadata.size])
        is_held = was_held and self._ring.holds(metadata.image_id, metadata.sequence)
        return PublishedImage(metadata, content, is_held)

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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.disable_monitor()
        self._context.destroy(linger=0)
        self._ring.close()
