"""Sources as real processes, and a consumer that reads every announced image from the ring buffer."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

import numpy as np
import pytest
import zmq
from support.processes.deployment import Deployment, Service

from stddaq.config import DetectorConfig
from stddaq.daemon.log import logger
from stddaq.dataplane.connections import open_socket
from stddaq.dataplane.endpoints import metadata_stream
from stddaq.dataplane.metadata import ImageMetadata
from stddaq.dataplane.ring_buffer import RingBuffer


def start_source(
    deployment: Deployment, command: Literal["simulate", "replay"], *args: object, ready: str | None = "ready"
) -> Service:
    """Start `stddaq simulate` or `stddaq replay` with the deployment's configuration."""
    return deployment.run(deployment.stddaq, command, deployment.config_path, *args, ready=ready)


def refusal(capsys: pytest.CaptureFixture[str], main: Callable[[list[str]], int], *argv: object) -> str:
    """Return the line with which `main`, called in this process, refuses to start."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    log_handlers = logger.handlers[:]
    try:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in argv])
    finally:
        logger.handlers[:] = log_handlers
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert ended.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@dataclass(frozen=True)
class ReceivedImage:
    """One announcement and a copy of its slot (height, width); `is_good` if the slot held the image."""

    metadata: ImageMetadata
    pixels: np.ndarray
    is_good: bool

    @property
    def image_id(self) -> int:
        return self.metadata.image_id


class ImageReader:
    """Subscribes to a detector's images and reads them in this process; a context manager."""

    def __init__(self, deployment: Deployment) -> None:
        self.config = DetectorConfig.parse(deployment.config)
        self._context = zmq.Context()
        self._socket = open_socket(self._context, zmq.SUB)
        self._socket.subscribe(b"")
        self._socket.connect(metadata_stream(self.config.detector_name, "image"))
        self._ring = RingBuffer(self.config, "image")

    def receive(self, n_images: int, timeout: float = 20.0) -> list[ReceivedImage]:
        """Return the next `n_images` images. Fail when they do not arrive within `timeout` seconds."""
        received = []
        deadline = time.monotonic() + timeout
        while len(received) < n_images:
            image = self.receive_one(deadline - time.monotonic())
            assert image is not None, f"{len(received)} of {n_images} images after {timeout} s"
            received.append(image)
        return received

    def receive_one(self, timeout: float) -> ReceivedImage | None:
        """Return the next image, or None when none arrives within `timeout` seconds."""
        if not self._socket.poll(max(0, int(timeout * 1000))):
            return None
        metadata = ImageMetadata.FromString(self._socket.recv())
        image_id, sequence = metadata.image_id, metadata.sequence
        was_held = self._ring.holds(image_id, sequence)
        pixels = self._ring.image(image_id).copy()
        return ReceivedImage(metadata, pixels, was_held and self._ring.holds(image_id, sequence))

    def close(self) -> None:
        self._context.destroy(linger=0)
        self._ring.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
