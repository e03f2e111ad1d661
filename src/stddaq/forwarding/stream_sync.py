"""`std_data_sync_stream`: announces an image when all its parts have arrived from the other server.

It owns the image ring and binds the metadata stream `image`; receivers write the parts, and push the metadata
of each to `sync`.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Mapping, Sequence

import zmq

from stddaq.closing import Closing
from stddaq.config import DetectorConfig
from stddaq.daemon import metrics
from stddaq.daemon.arguments import ArgumentParser, Seconds
from stddaq.daemon.log import event, logger, ready
from stddaq.daemon.main import StopRequest, run
from stddaq.daemon.metrics import Registry
from stddaq.daemon.statistics import Period, StatisticsLine
from stddaq.dataplane import endpoints
from stddaq.dataplane.connections import connection_counts, open_socket, watch_connections
from stddaq.dataplane.image_publisher import ImagePublisher
from stddaq.dataplane.ipc_sockets import Binding
from stddaq.dataplane.local_peers import accepts_connections
from stddaq.dataplane.metadata import ID_MISSMATCH, MetadataRules
from stddaq.forwarding.lost_images import LostImages
from stddaq.forwarding.messages import parse_forwarded
from stddaq.forwarding.part_sync import DEFAULT_TIMEOUT_S, PartedImage, PartSync
from stddaq.forwarding.parts import number_of_pairs, parts_of

PROGRAM = "std_data_sync_stream"
SOURCE = "image"
# Signals and statistics are checked at least once per this many messages.
BATCH_LIMIT = 1000


class StreamSyncService(Closing):
    """A running synchroniser: its sockets, the image ring, and its loop."""

    def __init__(self, config: DetectorConfig, timeout: float) -> None:
        """Raise `EndpointError` and `GeometryError`."""
        self._config, self._parts = config, parts_of(config)
        self._rules = MetadataRules(config, SOURCE)
        self._sync = PartSync(len(self._parts), config.n_slots, timeout)
        self._lost = LostImages(config.stats_collection_period)
        self.n_refused = self.n_overwritten = self._n_restarts_logged = self._n_receivers = 0
        self._publisher = ImagePublisher(config, SOURCE, n_parts=number_of_pairs(config))
        self._context = zmq.Context()
        self.endpoint = endpoints.received_parts(config.detector_name)
        self._socket = open_socket(self._context, zmq.PULL)
        self._monitor = watch_connections(self._socket)
        try:
            self._binding = Binding(self._socket, self.endpoint)
        except BaseException:
            self._context.destroy(linger=0)
            self._publisher.close()
            raise
        self._statistics = StatisticsLine(config, self._registry(), self._pairs)

    def serve(self, stop: StopRequest) -> None:
        """Announce images until asked to stop."""
        poller = zmq.Poller()
        for readable in (self._socket, self._publisher.socket, self._monitor, stop.fileno()):
            poller.register(readable, zmq.POLLIN)
        while not stop.poll():
            # Nothing is given up while parts that it lacks may be among the queued messages.
            if self._receive() < BATCH_LIMIT:
                self._publish(time.monotonic())
                delay = min(self._statistics.due_in, self._sync.due_at - time.monotonic())
                poller.poll(max(0, math.ceil(delay * 1000)))
            self._publisher.count_subscribers()
            self._binding.check()
            self._report()

    def _receive(self) -> int:
        """Receive up to `BATCH_LIMIT` messages, and announce what is complete. Return their number."""
        receive, clock = self._socket.recv, time.monotonic
        for n in range(BATCH_LIMIT):
            try:
                message = receive(zmq.NOBLOCK)
            except zmq.Again:
                return n
            metadata = parse_forwarded(message)
            if metadata is None or not self._rules.accepts(metadata):
                self.n_refused += 1
            elif self._sync.add(metadata, clock()):
                self._publish(-math.inf)
        return BATCH_LIMIT

    def _publish(self, now: float) -> None:
        """Announce complete images. Give up those that are incomplete and overdue at `now`."""
        for image in self._sync.take(now):
            if image.lacking:
                parts = ", ".join(map(str, image.lacking))
                self._lost.follow(image.image_id, image.number, f"not received without part {parts}")
            else:
                self._lost.follow(image.image_id, image.number)
                self._announce(image)

    def _announce(self, image: PartedImage) -> None:
        metadata = image.metadata
        metadata.ClearField("forwarding")
        marks = () if image.n_unmarked else image.marks
        if self._publisher.announce_parts(metadata, marks) == ID_MISSMATCH:
            self.n_overwritten += 1

    def _report(self) -> None:
        if self._sync.n_restarts != self._n_restarts_logged:
            self._n_restarts_logged = self._sync.n_restarts
            event("the image ids restart (restart %d)", self._n_restarts_logged)
        self._report_lost(time.monotonic())
        for n_receivers in connection_counts(self._monitor):
            if n_receivers < self._n_receivers:
                logger.warning("a receiver has disconnected%s", self._without_receiver())
            self._n_receivers = n_receivers
        self._statistics.write_if_due()

    def _report_lost(self, now: float) -> None:
        for line in self._lost.lines(now):
            event("%s", line)

    def _without_receiver(self) -> str:
        name = self._config.detector_name
        missing = [
            str(part.index)
            for part in self._parts
            if not accepts_connections(endpoints.receiver(name, part.index))
        ]
        return f", none runs for part {', '.join(missing)}" if missing else ""

    def _registry(self) -> Registry:
        registry, sync = Registry(self._config.detector_name, PROGRAM), self._sync
        self._publisher.register(registry)
        registry.add(metrics.IMAGES_OVERWRITTEN, lambda: self.n_overwritten, source=SOURCE)
        registry.add(metrics.IMAGES_INCOMPLETE, lambda: sync.n_incomplete)
        registry.add(metrics.IMAGES_NOT_RECEIVED, lambda: self._lost.n_lost)
        registry.add(metrics.IMAGES_WAITING, lambda: sync.n_waiting)
        registry.add(metrics.IDS_RESTARTED, lambda: sync.n_restarts)
        registry.add(metrics.PARTS_RECEIVED, lambda: sync.n_parts_received)
        registry.add(metrics.PARTS_IGNORED, lambda: sync.n_late, reason="late")
        registry.add(metrics.PARTS_IGNORED, lambda: sync.n_repeated, reason="repeated")
        registry.add(metrics.MESSAGES_REJECTED, lambda: self.n_refused, reason="malformed")
        return registry

    def _pairs(self, period: Period) -> Mapping[str, object]:
        count = period.count
        longest, self._sync.longest_queue = self._sync.longest_queue, self._sync.n_waiting
        return {
            **period.rate(metrics.PARTS_RECEIVED),
            "n_corrupted_images": count(metrics.IMAGES_INCOMPLETE),
            "queue": longest,
            "n_images": count(metrics.IMAGES_PUBLISHED),
            "n_not_received": count(metrics.IMAGES_NOT_RECEIVED),
            "n_overwritten": count(metrics.IMAGES_OVERWRITTEN),
            "n_late": count(metrics.PARTS_IGNORED, reason="late"),
            "n_repeated": count(metrics.PARTS_IGNORED, reason="repeated"),
            "n_malformed": count(metrics.MESSAGES_REJECTED),
        }

    def close(self) -> None:
        """List what is lost, deliver announcements on their way; release the sockets and the image ring."""
        self._report_lost(math.inf)
        self._socket.disable_monitor()
        self._binding.close()
        self._context.destroy(linger=0)
        self._publisher.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the synchroniser. Return the exit code."""
    parser = ArgumentParser(PROGRAM, "Announce an image when all its parts have come from the other server.")
    parser.add_config()
    parser.add_argument(
        "--timeout",
        type=Seconds(),
        default=DEFAULT_TIMEOUT_S,
        metavar="SECONDS",
        help=f"longest wait for a part (default: {DEFAULT_TIMEOUT_S:g})",
    )
    return run(parser, _serve, argv)


def _serve(config: DetectorConfig, args: argparse.Namespace, stop: StopRequest) -> None:
    # Deployments start both synchronisers, and expect the other one to be quiet.
    if config.sender_sends_full_images:
        return
    with StreamSyncService(config, args.timeout) as service:
        ready("%d parts of %s at %s", len(parts_of(config)), config.detector_name, service.endpoint)
        service.serve(stop)
