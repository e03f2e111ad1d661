"""`std_preview` as a process, and what a browser's side receives from it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import zmq
from support.processes.deployment import Deployment

from stddaq.wire.compression import decompress_lz4_into
from stddaq.wire.preview import split
from stddaq.wire.preview_requests import Request, View, frame_of, topic

VIEW = View()


def decoded(header: dict[str, Any], payload: memoryview) -> np.ndarray:
    """Return the counts of a preview, decoded as the page decodes them."""
    height, width = header["size"]
    planes = np.empty(2 * height * width, np.uint8)
    blob = planes.nbytes.to_bytes(4, "little") + bytes(payload)
    decompress_lz4_into(blob, planes)
    high, low = planes[: planes.size // 2], planes[planes.size // 2 :]
    return (high.astype(np.uint16) << 8 | low).reshape(height, width)


class PreviewReader:
    """A subscriber of the previews of one view."""

    def __init__(self, socket: zmq.Socket) -> None:
        self._socket = socket

    def receive_frame(self) -> tuple[dict[str, Any], memoryview]:
        """Return header and payload of the next message."""
        return split(frame_of(memoryview(self._socket.recv()))[1])

    def has_message(self) -> bool:
        """Return whether a message arrives within half a second."""
        return bool(self._socket.poll(500))

    def request(self, request: Request) -> None:
        """Request something else, too."""
        self._socket.subscribe(topic(request))

    def receive_image(self) -> tuple[dict[str, Any], np.ndarray]:
        """Return header and counts of the next image; messages without one are skipped."""
        while True:
            header, payload = self.receive_frame()
            if "error" not in header:
                return header, decoded(header, payload)


@contextmanager
def previews(deployment: Deployment, view: Request = VIEW, stream: str = "image") -> Iterator[PreviewReader]:
    """Subscribe to the previews of a view."""
    suffix = "" if stream == "image" else f"-{stream}"
    with zmq.Context() as context, context.socket(zmq.SUB) as socket:
        socket.linger, socket.rcvtimeo = 0, 60_000
        socket.connect(f"ipc://{deployment.ipc_directory}/{deployment.detector_name}-preview{suffix}")
        socket.subscribe(topic(view))
        yield PreviewReader(socket)
