"""`stddaq simulate-pco`: a camera server that pushes simulated images as bsread messages over the network.

It sends the images of `stddaq simulate`, at a rate or on software triggers. The ring buffer and the metadata
stream belong to the receiver (`std_bsread_recv`).
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import zmq

from stddaq.config import DetectorConfig
from stddaq.daemon.arguments import ArgumentParser, stream_address
from stddaq.daemon.main import StopRequest, run
from stddaq.dataplane.connections import connection_counts, open_socket, watch_connections
from stddaq.dataplane.metadata import ImageMetadata
from stddaq.errors import ConfigError, EndpointError
from stddaq.sources.image_sink import ImageSink
from stddaq.sources.loop import run_source
from stddaq.sources.options import add_source_options, source_options
from stddaq.sources.simulated.scenes import Scene
from stddaq.sources.simulated.service import SceneProvider, add_scene_options
from stddaq.text import bind_error_text, mismatch
from stddaq.wire.bsread import Channel, Compression, MessageEncoder, encode_value

# Images queued for one connection. At the limit the camera waits (push) or leaves images out (pub).
QUEUE_BYTES = 64 * 2**20
MIN_QUEUE, MAX_QUEUE = 4, 10_000
# Longest time for the delivery of the last images after all were published.
DELIVERY_TIMEOUT_S = 60.0
# The same after a stop request.
CLOSE_TIMEOUT_MS = 1000
# Trackers of sent messages are discarded after this many more messages.
N_TRACKED = 1000


def camera_name(detector_name: str) -> str:
    """Return the name under which the camera server of a detector receives software triggers."""
    return f"{detector_name}-camera"


class CameraServer(ImageSink):
    """The camera's socket. Its consumers are receivers."""

    def __init__(self, config: DetectorConfig, address: str, kind: int, compression: Compression) -> None:
        """Bind `address`. `kind` is zmq.PUSH or zmq.PUB. Raise `EndpointError`."""
        self.metadata = ImageMetadata()
        self._shape, self._dtype = config.image_shape, config.dtype
        channel = Channel.of_image(config.detector_name, config.image_shape, config.dtype, compression)
        self._channel, self._encoder = channel, MessageEncoder([channel])
        self._image = np.empty(self._shape, self._dtype)
        self._n_published = self._n_connected = 0
        self._context = zmq.Context(io_threads=2)
        self._images = open_socket(self._context, kind)
        self._images.copy_threshold = 0  # Track small messages as well.
        self._in_transit: list[zmq.MessageTracker] = []
        self._unsent: list[Any] | None = None
        self._discard_at = N_TRACKED
        self._images.sndhwm = min(max(QUEUE_BYTES // config.image_bytes, MIN_QUEUE), MAX_QUEUE)
        self._waits = kind == zmq.PUSH
        # The monitor reports connections, so subscriptions need not be read.
        self.socket = watch_connections(self._images)
        try:
            self._images.bind(address)
        except zmq.ZMQError as error:
            self._context.destroy()
            raise EndpointError(f"{address}: cannot be bound: {bind_error_text(error)}") from error
        self.endpoint = self._images.getsockopt_string(zmq.LAST_ENDPOINT)

    def count_subscribers(self) -> int:
        """Number of connected receivers."""
        for n_connected in connection_counts(self.socket):
            self._n_connected = n_connected
        return self._n_connected

    def can_take(self, timeout: float) -> bool:
        # An image whose receiver disconnected is sent first.
        if not self._waits:
            return True
        if not self._images.poll(int(timeout * 1000), zmq.POLLOUT):
            return False
        return self._unsent is None or self._send(self._unsent)

    def begin(self, image_id: int) -> np.ndarray:
        del image_id
        # The socket uses the memory of an uncompressed image until it is sent.
        if self._channel.compression == "none":
            self._image = np.empty(self._shape, self._dtype)
        return self._image

    def commit(self, image_id: int) -> int:
        taken = self.metadata.pco
        value = encode_value(self._channel, self._image)
        parts = self._encoder.message(
            image_id, taken.global_timestamp_sec, taken.global_timestamp_ns, [value]
        )
        self._send(parts)
        self._n_published += 1
        return self._n_published

    def _send(self, parts: list[Any]) -> bool:
        """Send an image. Keep it for the next receiver if the last one has just disconnected."""
        try:
            message = self._images.send_multipart(parts, zmq.NOBLOCK, copy=False, track=True)
        except zmq.Again:
            self._unsent = parts
            return False
        assert message is not None
        self._unsent = None
        self._in_transit.append(message)
        if len(self._in_transit) >= self._discard_at:
            self._in_transit = self._not_sent()
            self._discard_at = 2 * len(self._in_transit) + N_TRACKED
        return True

    def _not_sent(self) -> list[zmq.MessageTracker]:
        return [message for message in self._in_transit if not message.done]

    def _all_sent(self) -> bool:
        # `can_take` also sends the image that was kept.
        return (self._unsent is None or self.can_take(0.0)) and not self._not_sent()

    def deliver(self, stop: StopRequest) -> None:
        deadline = time.monotonic() + DELIVERY_TIMEOUT_S
        while not stop.poll() and time.monotonic() < deadline and not self._all_sent():
            time.sleep(0.02)

    def close(self) -> None:
        self._images.disable_monitor()
        self.socket.close()
        self._images.close(linger=CLOSE_TIMEOUT_MS)
        self._context.term()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the camera server. Return the exit code."""
    parser = ArgumentParser("stddaq simulate-pco", "Push simulated images of a PCO camera over the network.")
    parser.add_config()
    parser.add_argument(
        "stream_address",
        type=stream_address,
        help="address to listen on, tcp://HOST:PORT; port 0: the system chooses",
    )
    parser.add_argument(
        "-t",
        dest="kind",
        choices=("pull", "sub"),
        default="pull",
        help="socket type of receivers (default: pull)",
    )
    parser.add_argument(
        "--compression", choices=get_args(Compression), default="none", help="of the images (default: none)"
    )
    add_scene_options(parser)
    add_source_options(parser)
    return run(parser, _serve, argv)


def _serve(config: DetectorConfig, args: argparse.Namespace, stop: StopRequest) -> None:
    if config.detector_type != "pco":
        where = f"{args.detector_json_filename}: detector_type"
        raise ConfigError(mismatch(where, "pco for stddaq simulate-pco", config.detector_type))
    options = source_options(config, args)
    provider = SceneProvider(Scene.of(config, args.scene, args.seed))
    kind = zmq.PUB if args.kind == "sub" else zmq.PUSH
    open_sink = functools.partial(
        CameraServer, address=args.stream_address, kind=kind, compression=args.compression
    )
    run_source("simulate-pco", config, provider, options, stop, open_sink, camera_name(config.detector_name))
