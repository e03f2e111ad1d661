"""`std_bsread_recv`: the images that a camera server sends as bsread messages, into the ring buffer.

Several connections to one address share the load; what they deliver is checked, brought back into the order
of the ids, and published on the metadata stream `image`. One thread owns the sockets; large compressed
images are decoded in others.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections import Counter
from collections.abc import Sequence

import zmq

from stddaq.config import DetectorConfig
from stddaq.daemon.arguments import ArgumentParser, IntegerRange, stream_address
from stddaq.daemon.log import event, logger
from stddaq.daemon.main import StopRequest, run
from stddaq.daemon.statistics import RateCounter, StatisticsTimer, log_statistics
from stddaq.dataplane.endpoints import connection_counts, metadata_stream, open_socket, watch_connection
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
from stddaq.sources.bsread.reordering import Arrival, ImageOrder

DEFAULT_CONNECTIONS = 4
MAX_CONNECTIONS = 64
# Images that wait in all connections together. Then the camera server has to wait, or to drop images.
QUEUE_BYTES = 512 * 2**20
MIN_QUEUE = 4
MAX_QUEUE = 100_000
# Images that are held back together for a missing one at most.
HELD_BYTES = 256 * 2**20
MAX_HELD = 10_000
# A camera's host that is gone without a word is found after KEEPALIVE_IDLE_S + 3 * KEEPALIVE_INTERVAL_S.
KEEPALIVE_IDLE_S = 5
KEEPALIVE_INTERVAL_S = 2
# Signals and statistics are looked at after so many messages at the latest.
BATCH_LIMIT = 100
# Images that follow each other within BUSY_S gather for GATHER_S: a wake-up costs more than an image.
GATHER_S = 0.005
BUSY_S = 0.01
# After this process stood still, the threads that read the network need so long to catch up.
CATCH_UP_MS = 50


class BsreadReceiver:
    """A running receiver: sockets, counters and the loop."""

    def __init__(self, config: DetectorConfig, address: str, kind: int, n_connections: int) -> None:
        """`kind` is zmq.PULL or zmq.SUB. Raises `EndpointError` and `GeometryError`."""
        self._config = config
        self._rules = ImageRules(config)
        self._order: ImageOrder[CameraImage] = ImageOrder(
            n_connections, min(HELD_BYTES // config.image_bytes, MAX_HELD)
        )
        self._rejected: Counter[Rejection] = Counter()
        self._told: set[Rejection] = set()
        self._n_restarts_told = 0
        self._n_connected = 0
        self._last_messages = 0.0
        self._counter = RateCounter()
        self._statistics = StatisticsTimer(config.stats_collection_period)
        # Before the connections, over which images come at once.
        self._publisher = ImagePublisher(config)
        # Reading the network is most of the work: as many threads as can be of use.
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
        # No limit of a message's size: libzmq would close the connection for good.
        zmq_socket.tcp_keepalive = 1
        zmq_socket.tcp_keepalive_idle = KEEPALIVE_IDLE_S
        zmq_socket.tcp_keepalive_intvl = KEEPALIVE_INTERVAL_S
        zmq_socket.tcp_keepalive_cnt = 3
        self._monitor = watch_connection(zmq_socket)
        if kind == zmq.SUB:
            zmq_socket.subscribe(b"")
        try:
            # To the camera server these are as many peers; here they are read in turn as one.
            for _ in range(n_connections):
                zmq_socket.connect(address)
        except zmq.ZMQError as error:
            raise EndpointError(f"{address}: cannot be connected to: {error.strerror}") from error
        return zmq_socket

    def close(self) -> None:
        """Publish what was received, then release sockets and ring buffer."""
        try:
            for arrival in self._order.take(math.inf):
                self._filler.put(arrival.content)
        finally:
            self._filler.close()
            self._context.destroy()
            self._publisher.close()

    def serve(self, stop: StopRequest) -> None:
        """Receive and publish until asked to stop. Raises `SourceError` when the ring gets no memory."""
        poller = zmq.Poller()
        for readable in (self._socket, self._monitor, self._publisher.socket):
            poller.register(readable, zmq.POLLIN)
        poller.register(stop.fileno(), zmq.POLLIN)
        poller.register(self._filler.fileno(), zmq.POLLIN)
        while not stop.poll():
            n = self._receive()
            if 0 < n < BATCH_LIMIT and self._is_busy():
                time.sleep(GATHER_S)
            elif n < BATCH_LIMIT:
                self._sleep(poller)
            self._filler.settle()
            self._report()

    def _receive(self) -> int:
        """Take up to `BATCH_LIMIT` messages. Returns how many there were."""
        receive, order, accept = self._socket.recv, self._order, self._rules.accept
        n = 0
        try:
            while n < BATCH_LIMIT:
                # As recv_multipart, which takes twice as long: 2 us.
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
                # What is missing may be among the messages that wait: no id is given up before.
                self._publish(-math.inf)
        except zmq.Again:
            now, due_at = time.monotonic(), order.due_at
            if due_at is None or now < due_at or not self._socket.poll(CATCH_UP_MS):
                self._publish(now)
        return n

    def _publish(self, now: float) -> None:
        """Publish what is in order at `now`, s (monotonic), which says how long others were waited for."""
        for arrival in self._order.take(now):
            if self._order.n_restarts != self._n_restarts_told:
                self._n_restarts_told = self._order.n_restarts
                event("the camera's image ids begin again (restart %d)", self._n_restarts_told)
            self._filler.put(arrival.content)
            self._counter.count += 1

    def _reject(self, kind: Rejection, reason: str) -> None:
        self._rejected[kind] += 1
        if kind not in self._told:  # Once a period; the statistics line counts the others.
            self._told.add(kind)
            logger.warning("message rejected (%s): %s", kind, reason)

    def _is_busy(self) -> bool:
        """After messages have come: whether it was not long since others came."""
        now = time.monotonic()
        since, self._last_messages = now - self._last_messages, now
        return since < BUSY_S

    def _sleep(self, poller: zmq.Poller) -> None:
        """Until something arrives, or an image that is held back is due, or statistics are."""
        delay = self._statistics.due_in
        due_at = self._order.due_at
        if due_at is not None:
            delay = min(delay, due_at - time.monotonic())
        for readable, _ in poller.poll(max(0, math.ceil(delay * 1000))):
            if readable is self._monitor:
                self._watch_connections()
            elif readable is self._publisher.socket:
                _ = self._publisher.n_subscribers  # Keeps the queue of subscriptions short.

    def _watch_connections(self) -> None:
        for n_connected in connection_counts(self._monitor):
            before, self._n_connected = self._n_connected, n_connected
            if n_connected < before:
                self._order.connection_lost(camera_is_gone=not n_connected)
            if n_connected and not before:
                event("connected to the camera server")
            elif before and not n_connected:
                event("the camera server is gone")

    def _report(self) -> None:
        if self._statistics.due_in > 0:
            return
        order = self._order
        pairs = {
            "source": "bsread",
            **self._counter.pairs(self._statistics.restart()),
            "n_subscribers": self._publisher.n_subscribers,
            "n_connections": self._n_connected,
            "n_restarts": order.n_restarts,
            "n_missing": order.n_missing,
            "n_late": order.n_late,
            "n_repeated": order.n_repeated,
            **{f"n_bad_{kind}": self._rejected[kind] for kind in REJECTIONS},
        }
        log_statistics(self._config.detector_name, pairs)
        self._told.clear()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the receiver; the exit code."""
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
        "stream_address", type=stream_address, help="where the camera server is, tcp://HOST:PORT"
    )
    return run(parser, _serve, argv)


def _serve(config: DetectorConfig, args: argparse.Namespace, stop: StopRequest) -> None:
    if config.detector_type != "pco":
        raise ConfigError(
            f"{args.detector_json_filename}: detector_type: found {config.detector_type!r}, "
            "allowed for std_bsread_recv is pco"
        )
    n_connections = args.n_connections or (1 if args.kind == "sub" else DEFAULT_CONNECTIONS)
    if args.kind == "sub" and n_connections > 1:
        raise ConfigError(
            f"-n: found {n_connections}, allowed with -t sub is 1: every subscriber gets all images"
        )
    kind = zmq.SUB if args.kind == "sub" else zmq.PULL
    receiver = BsreadReceiver(config, args.stream_address, kind, n_connections)
    try:
        event(
            "ready: %d connections (%s) to %s, images on %s",
            n_connections,
            args.kind,
            args.stream_address,
            metadata_stream(config.detector_name, "image"),
        )
        receiver.serve(stop)
    finally:
        receiver.close()
