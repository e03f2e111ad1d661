"""Live streams as real processes, and plain ZeroMQ subscribers."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zmq
from support.processes.deployment import WAIT_TIMEOUT_S, Deployment, Service, free_port, wait_until
from support.processes.recording import pixels_of

from stddaq.closing import Closing
from stddaq.config import DetectorConfig
from stddaq.dataplane.image_publisher import ImagePublisher
from stddaq.dataplane.metadata import ImageMetadata, compression_of, dtype_code
from stddaq.dataplane.metadata_publisher import MetadataPublisher
from stddaq.dataplane.ring_buffer import RingBuffer

FORWARD: dict[str, Any] = {"type": "forward", "config": []}


def streamed_pixels(deployment: Deployment, image_id: int) -> np.ndarray:
    """Return `pixels_of` an image in the shape and type of the deployment."""
    config = DetectorConfig.parse(deployment.config)
    return pixels_of(image_id, config.image_shape, config.dtype)


@dataclass(frozen=True)
class LiveStreamService:
    """A running `std_live_stream`."""

    process: Service
    address: str

    def statistics(self) -> dict[str, int]:
        """Return the sums of the counters of all statistics lines so far."""
        total: dict[str, int] = {}
        for line in list(self.process.stdout):
            if ",port=" not in line:
                continue
            pairs = dict(pair.split("=") for pair in line.rpartition("] ")[2].split(" ")[0].split(","))
            for key, value in pairs.items():
                if key == "processed_times" or (key.startswith("n_") and key != "n_subscribers"):
                    total[key] = total.get(key, 0) + int(value)
        return total

    def wait_for(self, timeout: float = WAIT_TIMEOUT_S, **counters: int) -> None:
        """Wait until the counters have these values."""
        wait_until(
            lambda: all(self.statistics().get(key) == value for key, value in counters.items()),
            timeout,
            f"{counters}, found {self.statistics()}",
        )


def start_live_stream(deployment: Deployment, *args: object, setting: object = FORWARD) -> LiveStreamService:
    """Start a live stream on a free port, with `setting` in the configuration."""
    address = f"tcp://127.0.0.1:{free_port()}"
    configs = deployment.config.get("live_stream_configs", {})
    deployment.write_config(live_stream_configs=configs | {address: setting})
    return LiveStreamService(deployment.start("std_live_stream", address, *args), address)


def publish(publisher: ImagePublisher, deployment: Deployment, ids: range, **options: Any) -> None:
    """Publish images whose pixels are `streamed_pixels` of their id."""
    for image_id in ids:
        publisher.publish(image_id, streamed_pixels(deployment, image_id), **options)


def started(
    deployment: Deployment, publisher: ImagePublisher, *args: object, **options: Any
) -> LiveStreamService:
    """Start a live stream. Return it when it receives every published image."""
    n_before = publisher.count_subscribers()
    stream = start_live_stream(deployment, *args, **options)
    assert publisher.wait_for_subscribers(n_before + 1, 60)
    return stream


def start_viewer(deployment: Deployment, stream: LiveStreamService, slow: Path) -> Service:
    """Start a viewer process and wait for its subscription; it is slow while the file `slow` exists."""
    n_lines = len(stream.process.stdout)
    program = Path(__file__).with_name("viewer.py")
    viewer = deployment.run(sys.executable, program, stream.address, slow)
    stream.process.wait_for_line(" subscribed", start=n_lines)
    return viewer


def ids_got(viewer: Service) -> list[int]:
    """Return the ids that a viewer process has printed."""
    return [int(line.split()[1]) for line in list(viewer.stdout) if line.startswith("got ")]


class Subscriber(Closing):
    """A plain SUB socket; a context manager."""

    def __init__(self, address: str, topic: bytes = b"", queue: int = 1000) -> None:
        self._context = zmq.Context()
        self.socket = self._context.socket(zmq.SUB)
        self.socket.rcvhwm = queue
        self.socket.subscribe(topic)
        self.socket.connect(address)

    def receive(self, timeout: float = WAIT_TIMEOUT_S) -> list[bytes]:
        """Return the parts of the next message. Fail when none arrives within `timeout` seconds."""
        assert self.socket.poll(int(timeout * 1000)), f"no message within {timeout} s"
        return self.socket.recv_multipart()

    def receive_ids(self, count: int) -> list[int]:
        """Return the ids of the next `count` array-1.0 messages."""
        return [json.loads(self.receive()[0])["frame"] for _ in range(count)]

    def is_quiet(self, seconds: float = 0.3) -> bool:
        """Return whether no message arrives within `seconds`."""
        return not self.socket.poll(int(seconds * 1000))

    def close(self) -> None:
        self._context.destroy(linger=0)


@contextmanager
def subscribed(stream: LiveStreamService, **options: Any) -> Iterator[Subscriber]:
    """Yield a subscriber when the live stream has reported its subscription."""
    n_before = sum(" subscribed" in line for line in stream.process.stdout)
    with Subscriber(stream.address, **options) as subscriber:
        wait_until(
            lambda: sum(" subscribed" in line for line in stream.process.stdout) > n_before,
            what="the subscription",
        )
        yield subscriber


class FakeStage(Closing):
    """Publishes given bytes, as a processing stage does; a context manager."""

    def __init__(self, deployment: Deployment, suffix: str) -> None:
        self._config = DetectorConfig.parse(deployment.config)
        self._suffix = suffix
        self.stream = MetadataPublisher(self._config, suffix)
        self._ring = RingBuffer(self._config, suffix)

    def publish(self, image_id: int, content: bytes | Sequence[bytes], **fields: Any) -> None:
        """Put the bytes of an image into the ring and announce it; `fields` replace metadata."""
        blob = content if isinstance(content, bytes) else b"".join(content)
        self._ring.begin(image_id)[: len(blob)] = blob
        metadata: dict[str, Any] = {
            "image_id": image_id,
            "height": self._config.image_pixel_height,
            "width": self._config.image_pixel_width,
            "size": len(blob),
            "dtype": dtype_code(self._config.pixel_type),
            "status": 1,
            "compression": compression_of(self._suffix),
            "sequence": self._ring.commit(image_id),
        }
        self.stream.send(ImageMetadata(**(metadata | fields)))

    def close(self) -> None:
        self.stream.close()
        self._ring.close()
