"""The newest image of a live stream, a few times a second, small enough for Redis."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import numpy as np

from stddaq.client.live_stream import LiveImage, LiveStreamClient, LiveStreamTimeoutError

# How often the thread notices that it has to end while no image comes.
RECEIVE_TIMEOUT_S = 0.2

logger = logging.getLogger("stddaq")


class Preview:
    """A thread that receives a live stream and shows its newest image every `period` seconds at most."""

    def __init__(self, address: str, period: float, show: Callable[[LiveImage], None]) -> None:
        """Connect to `address`, `tcp://host:port`. Raise `LiveStreamError`."""
        self._client = LiveStreamClient(address).connect()
        self._period, self._show = period, show
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"preview of {address}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Disconnect, and wait for the end of the thread."""
        self._stop.set()
        self._thread.join()
        self._client.close()

    def _run(self) -> None:
        is_failing = False
        while not self._stop.is_set():
            try:
                image = self._client.receive(RECEIVE_TIMEOUT_S, newest=True)
            except LiveStreamTimeoutError:
                continue
            try:
                self._show(image)
                is_failing = False
            except Exception as error:  # noqa: BLE001  (the next image may be shown)
                if not is_failing:
                    logger.warning(
                        "image %d is not shown: %s: %s", image.image_id, type(error).__name__, error
                    )
                is_failing = True
            self._stop.wait(self._period)


def binned(pixels: np.ndarray, max_pixels: int) -> np.ndarray:
    """Return the image in its type with at most `max_pixels`: means of squares of pixels.

    Rows and columns that do not fill a square are cut off.
    """
    height, width = pixels.shape
    n = 1
    while (height // n) * (width // n) > max_pixels:
        n += 1
    if n == 1:
        return pixels
    height, width = height // n, width // n
    squares = pixels[: height * n, : width * n].reshape(height, n, width, n)
    return squares.mean(axis=(1, 3)).astype(pixels.dtype)
