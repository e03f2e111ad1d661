"""Both ends of a source: where the pixels come from (`ImageProvider`) and where they go (`ImageSink`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import zmq

from stddaq.config import DetectorConfig
from stddaq.daemon.main import StopRequest
from stddaq.dataplane.image_publisher import ImagePublisher
from stddaq.dataplane.metadata import ImageMetadata


class ImageProvider(Protocol):
    """The images of a source without a detector."""

    length: int | None
    """Number of images; None: not limited."""

    def fill(self, slot: np.ndarray, position: int, image_id: int) -> None:
        """Put image number `position` (from 0, in the order of publication) into `slot`, (height, width).

        Raise `SourceError` if it cannot be read.
        """
        ...


class ImageSink(Protocol):
    """The output of a source: the ring buffer, or a camera server's socket."""

    metadata: ImageMetadata
    """Metadata of the next image, reused. The detector's own fields are set before `commit`."""
    endpoint: str
    """Address that consumers connect to."""
    socket: zmq.Socket
    """Becomes readable when consumers connect or disconnect."""

    def count_subscribers(self) -> int:
        """Number of connected consumers."""
        ...

    def can_take(self, timeout: float) -> bool:
        """Return whether an image can be published within `timeout` seconds."""
        return True

    def begin(self, image_id: int) -> np.ndarray:
        """Return the array (height, width) for the pixels of the next image. Raise `SourceError`."""
        ...

    def commit(self, image_id: int) -> int:
        """Publish the image in the array of `begin`. Return its sequence number."""
        ...

    def deliver(self, stop: StopRequest) -> None:
        """Wait until slow consumers have received the last images, unless asked to stop."""

    def close(self) -> None:
        """Release everything."""
        ...


OpenSink = Callable[[DetectorConfig], ImageSink]


class RingSink(ImagePublisher, ImageSink):
    """The ring buffer and the metadata stream. They never wait for consumers."""
