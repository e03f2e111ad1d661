"""`std_bsread_recv`: puts the bsread images of a camera server into the ring buffer.

Several connections to one address share the load. Their messages are checked, sorted by image id, and
published on the metadata stream `image`. One thread owns the sockets; others decode large compressed images.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import math
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence

import zmq

from stddaq.config import DetectorConfig
from stddaq.daemon import metrics
from stddaq.daemon.arguments import ArgumentParser, IntegerRange, stream_address
from stddaq.daemon.log import event, logger, ready
from stddaq.daemon.main import StopRequest, run
from stddaq.daemon.metrics import Registry
from stddaq.daemon.statistics import Period, StatisticsLine
from stddaq.dataplane.connections import connection_counts, open_socket, watch_connections
from stddaq.dataplane.endpoints import metadata_stream
from stddaq.dataplane.image_publisher import ImagePublisher
from stddaq.errors import ConfigError, EndpointError
from stddaq.sources.bsread.image_messages import (
    REJECTIONS,
    CameraImage,
    ImageRules,
    RejectedError,
    Rejection,
    RingFiller,
)
from stddaq.sources.bsread.reordering import Arrival, ReorderBuffer
from stddaq.text import mismatch

DEFAULT_CONNECTIONS = 4
MAX_CONNECTIONS = 64
# Images queued in all connections together. At the limit the camera server waits or drops images.
QUEUE_BYTES = 512 * 2**20
MIN_QUEUE = 4
MAX_QUEUE = 100_000
# Limits of the images held back for a missing one.
HELD_BYTES = 256 * 2**20
MAX_HELD = 10_000
# A dead host is detected after KEEPALIVE_IDLE_S + 3 * KEEPALIVE_INTERVAL_S.
KEEPALIVE_IDLE_S = 5
KEEPALIVE_INTERVAL_S = 2
# Signals and statistics are checked at least once per this many messages.
BATCH_LIMIT = 100
# A wake-up costs more than an image: while messages arrive within BUSY_S of each other, wait BATCH_WAIT_S.
BATCH_WAIT_S = 0.005
BUSY_S = 0.01
# After this process was stopped, the threads that read the network catch up within this time.
CATCH_UP_MS = 50


class BsreadReceiver:
    """A running receiver: its sockets, its counters and its loop."""

    def __init__(self, config: DetectorConfig, address: str, kind: int, n_connections: int) -> None:
        """`kind` is zmq.PULL or zmq.SUB. Raise `EndpointError` or `GeometryError`."""
        self._config = config
        self._rules = ImageRules(config)
        self._buffer: ReorderBuffer[CameraImage] = ReorderBuffer(
            n_connections, min(HELD_BYTES // config.image_bytes, MAX_HELD)
        )
        self._rejected: Counter[Rejection] = Counter()
        # Kinds of rejection that were logged in this period.
        self._logged: set[Rejection] = set()
        self._n_restarts_logged = 0
        self._n_connected = 0
        self._last_messages = 0.0
        self._n_received = 0
        # Opened before the connections, which deliver images immediately.
        self._publisher = ImagePublisher(config)
        self._statistics = StatisticsLine(config, self._registry(), self._pairs)
        # Reading the network is most of the work.
        self._context = zmq.Context(io_threads=min(n_connections, os.cpu_count() or 1))
        try:
            self._socket = self._connect(address, kind, n_connections)
        except BaseException:
            self._context.destroy()
            self._publisher.close()
            raise
        self._filler = RingFiller(config, self._publisher, self._reject)

    def _connect(self, address: str, kind: int, n_connections: int) -> zmq.Socket:
        zmq_socket = open_socket(self._context, kind)
        queue = QUEUE_BYTES // self._config.image_bytes // n_connections
        zmq_socket.rcvhwm = min(max(queue, MIN_QUEUE), MAX_QUEUE)
        # No limit on the size of messages: after a larger one libzmq closes the connection for good.
        zmq_socket.tcp_keepalive = 1
        zmq_socket.tcp_keepalive_idle = KEEPALIVE_IDLE_S
        zmq_socket.tcp_keepalive_intvl = KEEPALIVE_INTERVAL_S
        zmq_socket.tcp_keepalive_cnt = 3
        self._monitor = watch_connections(zmq_socket)
        if kind == zmq.SUB:
            zmq_socket.subscribe(b"")
        try:
            # The camera server sees several peers; this socket reads them in turn.
            for _ in range(n_connections):
                zmq_socket.connect(address)
        except zmq.ZMQError as error:
            raise EndpointError(f"{address}: cannot be connected to: {error.strerror}") from error
        return zmq_socket

    def close(self) -> None:
        """Publish the images received so far, then release sockets and ring buffer."""
        with contextlib.ExitStack() as stack:
            stack.callback(self._publisher.close)
            stack.callback(self._context.destroy)
            stack.callback(self._filler.close)
            for arrival in self._buffer.take(math.inf):
                self._filler.put(arrival.content)

    def serve(self, stop: StopRequest) -> None:
        """Receive and publish until asked to stop. Raise `SourceError` if there is no memory for a slot."""
        poller = zmq.Poller()
        for readable in (self._socket, self._monitor, self._publisher.socket):
            poller.register(readable, zmq.POLLIN)
        poller.register(stop.fileno(), zmq.POLLIN)
        poller.register(self._filler.fileno(), zmq.POLLIN)
        while not stop.poll():
            n = self._receive()
            if 0 < n < BATCH_LIMIT and self._is_busy():
                time.sleep(BATCH_WAIT_S)
            elif n < BATCH_LIMIT:
                self._sleep(poller)
            self._filler.settle()
            self._publisher.count_subscribers()
            self._report()

    def _receive(self) -> int:
        """Receive up to `BATCH_LIMIT` messages. Return their number."""
        receive, order, accept = self._socket.recv, self._buffer, self._rules.accept
        n = 0
        try:
            while n < BATCH_LIMIT:
                # 2 us, half the time of recv_multipart.
                frame = receive(zmq.NOBLOCK, copy=False)
                connection = frame.get(zmq.SRCFD)
                parts = [frame.buffer]
                while frame.more:
                    frame = receive(copy=False)
                    parts.append(frame.buffer)
                n += 1
                now = time.monotonic()
                try:
                    image = accept(parts)
                except RejectedError as error:
                    self._reject(error.kind, str(error))
                    continue
                order.add(Arrival(image.image_id, image.taken_ns, now, connection, image))
                # Missing ids may be among the queued messages: skip none of them yet.
                self._publish(-math.inf)
        except zmq.Again:
            now, due_at = time.monotonic(), order.due_at
            if due_at is None or now < due_at or not self._socket.poll(CATCH_UP_MS):
                self._publish(now)
        return n

    def _publish(self, now: float) -> None:
        """Publish the images that the buffer releases at `now`, s (monotonic)."""
        for arrival in self._buffer.take(now):
            if self._buffer.n_restarts != self._n_restarts_logged:
                self._n_restarts_logged = self._buffer.n_restarts
                event("the camera's image ids restart (restart %d)", self._n_restarts_logged)
            self._filler.put(arrival.content)
            self._n_received += 1

    def _reject(self, kind: Rejection, reason: str) -> None:
        self._rejected[kind] += 1
        if kind not in self._logged:  # Once per period; the statistics line counts all.
            self._logged.add(kind)
            logger.warning("message rejected (%s): %s", kind, reason)

    def _is_busy(self) -> bool:
        """Return whether the messages before these arrived a short time ago."""
        now = time.monotonic()
        since, self._last_messages = now - self._last_messages, now
        return since < BUSY_S

    def _sleep(self, poller: zmq.Poller) -> None:
        """Wait for a message, or until a held image or the statistics are due."""
        delay = self._statistics.due_in
        due_at = self._buffer.due_at
        if due_at is not None:
            delay = min(delay, due_at - time.monotonic())
        for readable, _ in poller.poll(max(0, math.ceil(delay * 1000))):
            if readable is self._monitor:
                self._watch_connections()

    def _watch_connections(self) -> None:
        for n_connected in connection_counts(self._monitor):
            before, self._n_connected = self._n_connected, n_connected
            if n_connected < before:
                self._buffer.connection_lost(all_lost=not n_connected)
            if n_connected and not before:
                event("connected to the camera server")
            elif before and not n_connected:
                event("disconnected from the camera server")

    def _report(self) -> None:
        if self._statistics.write_if_due():
            self._logged.clear()

    def _registry(self) -> Registry:
        registry, buffer, rejected = (
            Registry(self._config.detector_name, "std_bsread_recv"),
            self._buffer,
            self._rejected,
        )
        registry.add(metrics.IMAGES_RECEIVED, lambda: self._n_received, source="bsread")
        self._publisher.register(registry)
        registry.add(metrics.CAMERA_IMAGES_LEFT_OUT, lambda: buffer.n_skipped_ids, reason="skipped")
        registry.add(metrics.CAMERA_IMAGES_LEFT_OUT, lambda: buffer.n_late, reason="late")
        registry.add(metrics.CAMERA_IMAGES_LEFT_OUT, lambda: buffer.n_repeated, reason="repeated")
        registry.add(metrics.IDS_RESTARTED, lambda: buffer.n_restarts)
        registry.add(metrics.CAMERA_CONNECTIONS, lambda: self._n_connected)
        for kind in REJECTIONS:
            registry.add(
                metrics.MESSAGES_REJECTED, functools.partial(rejected.__getitem__, kind), reason=f"bad_{kind}"
            )
        return registry

    def _pairs(self, period: Period) -> Mapping[str, object]:
        """Return the pairs of the statistics line; all but the rate count since the start."""
        total = period.total
        return {
            "source": "bsread",
            **period.rate(metrics.IMAGES_RECEIVED),
            "n_subscribers": self._publisher.count_subscribers(),
            "n_connections": total(metrics.CAMERA_CONNECTIONS),
            "n_restarts": total(metrics.IDS_RESTARTED),
            "n_skipped_ids": total(metrics.CAMERA_IMAGES_LEFT_OUT, reason="skipped"),
            "n_late": total(metrics.CAMERA_IMAGES_LEFT_OUT, reason="late"),
            "n_repeated": total(metrics.CAMERA_IMAGES_LEFT_OUT, reason="repeated"),
            **{
                f"n_bad_{kind}": total(metrics.MESSAGES_REJECTED, reason=f"bad_{kind}") for kind in REJECTIONS
            },
        }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the receiver. Return the exit code."""
    parser = ArgumentParser("std_bsread_recv", "Receive the images of a camera server over bsread.")
    parser.add_argument(
        "-n",
        dest="n_connections",
        type=IntegerRange(1, MAX_CONNECTIONS),
        metavar="CONNECTIONS",
        help=f"connections to the camera server (default: {DEFAULT_CONNECTIONS}; 1 with -t sub)",
    )
    parser.add_argument(
        "-t", dest="kind", choices=("pull", "sub"), default="pull", help="type of socket (default: pull)"
    )
    parser.add_config()
    parser.add_argument(
        "stream_address", type=stream_address, help="address of the camera server, tcp://HOST:PORT"
    )
    return run(parser, _serve, argv)


def _serve(config: DetectorConfig, args: argparse.Namespace, stop: StopRequest) -> None:
    if config.detector_type != "pco":
        where = f"{args.detector_json_filename}: detector_type"
        raise ConfigError(mismatch(where, "pco for std_bsread_recv", config.detector_type))
    n_connections = args.n_connections or (1 if args.kind == "sub" else DEFAULT_CONNECTIONS)
    if args.kind == "sub" and n_connections > 1:
        why = "every subscriber receives all images"
        raise ConfigError(mismatch("-n", "1 with -t sub", f"{n_connections}", why))
    kind = zmq.SUB if args.kind == "sub" else zmq.PULL
    receiver = BsreadReceiver(config, args.stream_address, kind, n_connections)
    try:
        ready(
            "%d connections (%s) to %s, images on %s",
            n_connections,
            args.kind,
            args.stream_address,
            metadata_stream(config.detector_name, "image"),
        )
        receiver.serve(stop)
    finally:
        receiver.close()
