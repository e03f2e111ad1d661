"""The loop of a live stream for one consumer that counts: every row of every run, or an error (`-t stins`).

The module `run_series` decides what is sent. This one feeds it with images and with the driver's statuses,
and sends a message when the consumer has received the one before.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from stddaq.config import DetectorConfig
from stddaq.dataplane.metadata import ImageMetadata
from stddaq.errors import CompressionError
from stddaq.streaming.encoders import status_name
from stddaq.streaming.live_stream import LiveStream
from stddaq.streaming.run_follower import RunFollower
from stddaq.streaming.run_series import Row, RunSeries
from stddaq.wire.stins import SeriesMaker

# How long the end waits until the consumer has received the message before the last one.
END_TIMEOUT_S = 1.0


class RunStream(LiveStream):
    """A live stream of runs; see the module."""

    def __init__(self, config: DetectorConfig, runs: RunFollower, *args: Any) -> None:
        """`args` are the further ones of `LiveStream`."""
        super().__init__(config, *args)
        self._runs = runs
        self._series = RunSeries(SeriesMaker(config.image_shape, config.dtype), config.image_bytes)
        # Of the images that wait for their verdict, in order.
        self._unsettled: deque[Row] = deque()
        self._n_left = 0

    def _sources(self) -> Sequence[int]:
        return (self._runs.fileno(),)

    def _take_images(self) -> int:
        viewers = self._viewers
        if viewers.n_left != self._n_left or not viewers.n_subscribed:
            self._n_left = viewers.n_left
            self._series.disconnect(self._subscriber.counts.n_dropped)
        self._series.has_consumer = bool(viewers.n_subscribed)
        viewers.n_dropped = self._series.n_dropped
        self._series.is_numbered = self._subscriber.counts.is_numbered
        for status in self._runs.statuses():
            self._series.update(status)
        return super()._take_images()

    def _take(self, metadata: ImageMetadata, now: float) -> None:
        row = self._series.expect(metadata.image_id, self._subscriber.counts.n_dropped)
        if row is None:
            return
        self._unsettled.append(row)
        if not self._taken.take(metadata):
            self.n_overwritten += 1
            self._unsettled.pop().settle(None, "overwritten")

    def _finish(self, metadata: ImageMetadata, taken: memoryview, is_overwritten: bool) -> None:
        row = self._unsettled.popleft()
        if is_overwritten:
            self.n_overwritten += 1
            self._encoder.discard(metadata, taken)
            row.settle(None, "overwritten")
            return
        try:
            _, image = self._encoder.parts(metadata, taken)
        except CompressionError as error:
            self._note_failed(metadata, error)
            row.settle(None, "failed")
            return
        row.settle(image, status_name(metadata))

    def _send_waiting(self) -> None:
        viewers = self._viewers
        while viewers.is_ready and (message := self._series.next_message()):
            parts, image = message
            self.n_sent += viewers.send(parts, image) and image is not None

    def close(self) -> None:
        """End the series of a run that is not over with an error, and disconnect from the source."""
        try:
            self._send_end()
        finally:
            super().close()

    def _send_end(self) -> None:
        self._series.stop()
        limit = time.monotonic() + END_TIMEOUT_S
        while self._viewers.n_subscribed and time.monotonic() < limit:
            if self._viewers.is_ready:
                if not (message := self._series.next_message()):
                    break
                self._viewers.send(*message)
            self._viewers.attend(0.02)
