"""`std_metadata_stream`: sends the metadata of every image to another server."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence

import zmq

from stddaq.closing import Closing
from stddaq.config import DetectorConfig
from stddaq.daemon import metrics
from stddaq.daemon.arguments import ArgumentParser, stream_address
from stddaq.daemon.log import ready
from stddaq.daemon.main import StopRequest, run
from stddaq.daemon.metrics import Registry
from stddaq.daemon.statistics import Period, StatisticsLine
from stddaq.dataplane.image_subscriber import ImageSubscriber
from stddaq.forwarding.messages import MAX_METADATA_BYTES, QUEUED_MESSAGES, Restarts, keep_number, serialise
from stddaq.forwarding.network import NetworkPublisher

PROGRAM = "std_metadata_stream"
BATCH_LIMIT = 1000


class MetadataSender(Closing):
    """A running sender of metadata: the subscription, the socket to the other server, and the loop."""

    def __init__(self, config: DetectorConfig, address: str, suffix: str) -> None:
        """Raise `EndpointError` and `GeometryError`."""
        self._suffix = suffix
        self.n_sent = self.n_failed = 0
        self._restarts = Restarts()
        self._network = NetworkPublisher(address, MAX_METADATA_BYTES, QUEUED_MESSAGES)
        try:
            self._subscriber = ImageSubscriber(config, suffix)
        except BaseException:
            self._network.close()
            raise
        self._statistics = StatisticsLine(config, self._registry(config), self._pairs)

    def serve(self, stop: StopRequest) -> None:
        """Send until asked to stop."""
        poller = zmq.Poller()
        for readable in (self._subscriber.socket, self._network.socket, stop.fileno()):
            poller.register(readable, zmq.POLLIN)
        while not stop.poll():
            delay = 0.0 if self._subscriber.is_waiting else min(self._statistics.due_in, 0.2)
            poller.poll(math.ceil(delay * 1000))
            self._network.count_subscribers()
            self._send()
            self._network.check()
            self._subscriber.check()
            if self._statistics.write_if_due():
                self._subscriber.reader.log_refusal()

    def _send(self) -> None:
        network = self._network
        for metadata in self._subscriber.receive(BATCH_LIMIT):
            # The numbers of the source show what was not received here, too, also after a restart.
            number = metadata.number or metadata.sequence
            keep_number(metadata)
            metadata.forwarding.message = number or network.next_message()
            self._restarts.follow(metadata.image_id, number)
            self._restarts.tell(metadata.forwarding)
            message = serialise(metadata)
            if len(message) > MAX_METADATA_BYTES:
                self.n_failed += 1
                continue
            network.socket.send(message)
            self.n_sent += 1

    def _registry(self, config: DetectorConfig) -> Registry:
        registry = Registry(config.detector_name, PROGRAM)
        self._subscriber.register(registry)
        registry.add(metrics.PARTS_SENT, lambda: self.n_sent)
        registry.add(metrics.IMAGES_FAILED, lambda: self.n_failed, source=self._suffix)
        registry.add(metrics.SERVER_CONNECTIONS, lambda: self._network.n_subscribers)
        return registry

    def _pairs(self, period: Period) -> Mapping[str, object]:
        return {
            "source": self._suffix,
            **period.rate(metrics.PARTS_SENT),
            "n_receivers": period.total(metrics.SERVER_CONNECTIONS),
            "n_failed": period.count(metrics.IMAGES_FAILED),
            "n_dropped": period.count(metrics.MESSAGES_LOST),
            "n_malformed": period.count(metrics.MESSAGES_REJECTED),
        }

    def close(self) -> None:
        """Deliver what is on its way, for up to a second, and disconnect."""
        self._network.close()
        self._subscriber.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Run a sender of metadata. Return the exit code."""
    parser = ArgumentParser(PROGRAM, "Send the metadata of every image to another server.")
    parser.add_config()
    parser.add_argument("stream_address", type=stream_address, help="address to bind, tcp://HOST:PORT")
    parser.add_source_suffix('suffix of the metadata stream to send (default "image")')
    return run(parser, _serve, argv)


def _serve(config: DetectorConfig, args: argparse.Namespace, stop: StopRequest) -> None:
    with MetadataSender(config, args.stream_address, args.source_suffix) as sender:
        ready("%s of %s at %s", args.source_suffix, config.detector_name, args.stream_address)
        sender.serve(stop)
