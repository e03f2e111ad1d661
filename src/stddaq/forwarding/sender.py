"""`std_stream_send`: sends its part of every image to `std_stream_receive` on another server."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Mapping, Sequence

import zmq

from stddaq.closing import Closing
from stddaq.config import DetectorConfig
from stddaq.daemon import metrics
from stddaq.daemon.arguments import ArgumentParser, IntegerRange, stream_address
from stddaq.daemon.log import logger, ready
from stddaq.daemon.main import StopRequest, run
from stddaq.daemon.metrics import Registry
from stddaq.daemon.statistics import Period, StatisticsLine
from stddaq.dataplane.image_subscriber import ImageSubscriber
from stddaq.dataplane.metadata import ImageMetadata
from stddaq.dataplane.taken_images import TakenImages
from stddaq.forwarding.messages import MAX_METADATA_BYTES, Restarts, keep_number, serialise
from stddaq.forwarding.network import NetworkPublisher
from stddaq.forwarding.parts import Part, number_of_pairs, part_of

PROGRAM = "std_stream_send"
SOURCE = "image"
BATCH_LIMIT = 100
CHECK_PERIOD_S = 0.2
# Parts of a source without cursor that wait for their verdict, in bytes.
MAX_HELD_BYTES = 512 * 2**20


class StreamSender(Closing):
    """A running sender: the subscription, the socket to the other server, and the loop."""

    def __init__(self, config: DetectorConfig, address: str, part: Part) -> None:
        """Raise `EndpointError` and `GeometryError`."""
        self._part = part
        # Which images: those of this pair, or all.
        self._is_full = config.sender_sends_full_images
        self._n_pairs = number_of_pairs(config) if self._is_full else 1
        self._place = part.index if self._is_full else 0
        self.n_sent = self.n_unwanted = self.n_overwritten = self.n_failed = 0
        self._network = NetworkPublisher(address, part.length)
        try:
            self._subscriber = ImageSubscriber(config, SOURCE)
        except BaseException:
            self._network.close()
            raise
        self._reader = self._subscriber.reader
        max_held = max(1, MAX_HELD_BYTES // part.length)
        self._restarts = Restarts()
        self._taken = TakenImages(self._reader, max_held, self._copy, self._finish)
        self._reported = (0, 0)
        self._statistics = StatisticsLine(config, self._registry(config), self._pairs)

    def serve(self, stop: StopRequest) -> None:
        """Send until asked to stop."""
        poller = zmq.Poller()
        for readable in (self._subscriber.socket, self._network.socket, stop.fileno()):
            poller.register(readable, zmq.POLLIN)
        look_at = 0.0
        while not stop.poll():
            now = time.monotonic()
            if now >= look_at:
                look_at = now + CHECK_PERIOD_S
                self._look_around()
            timeout = min(self._statistics.due_in, look_at - now, self._taken.due_in)
            poller.poll(0 if self._subscriber.is_waiting else max(0, math.ceil(timeout * 1000)))
            self._network.count_subscribers()
            for metadata in self._subscriber.receive(BATCH_LIMIT):
                if metadata.image_id % self._n_pairs == self._place:
                    self._take(metadata)
            self._taken.finish_judged()
            self._report()

    def _take(self, metadata: ImageMetadata) -> None:
        """Take the part out of its slot, and send it if the slot held the image throughout."""
        if not self._is_full:
            self._restarts.follow(metadata.image_id, metadata.sequence)
        if not self._network.n_subscribers:
            self._network.next_message()
            self.n_unwanted += 1
        elif not self._taken.take(metadata):
            self._drop()

    def _copy(self, metadata: ImageMetadata) -> bytes:
        part = self._part
        return bytes(self._reader.ring.slot(metadata.image_id)[part.offset : part.offset + part.length])

    def _finish(self, metadata: ImageMetadata, taken: bytes, is_overwritten: bool) -> None:
        if is_overwritten:
            self._drop()
            return
        keep_number(metadata)
        metadata.forwarding.message = self._network.next_message()
        metadata.forwarding.pair = self._part.index + 1
        self._restarts.tell(metadata.forwarding)
        message = serialise(metadata)
        if len(message) > MAX_METADATA_BYTES:
            self.n_failed += 1
            return
        self._network.socket.send_multipart([message, taken], copy=False)
        self.n_sent += 1

    def _drop(self) -> None:
        """Count an overwritten part. Its number shows the receiver that it was published."""
        self._network.next_message()
        self.n_overwritten += 1

    def _look_around(self) -> None:
        self._subscriber.check()
        self._network.check()
        if self._taken:
            return
        self._reader.refresh()
        if self._network.n_subscribers:
            self._reader.watch_source()
        else:
            self._reader.published_ids.ignore()

    def _report(self) -> None:
        if not self._statistics.write_if_due():
            return
        self._reader.log_refusal()
        now = self.n_overwritten, self.n_failed
        n_overwritten, n_failed = now[0] - self._reported[0], now[1] - self._reported[1]
        self._reported = now
        if n_overwritten:
            logger.warning("cannot follow the source: %d images were overwritten, not sent", n_overwritten)
        if n_failed:
            limit = MAX_METADATA_BYTES
            logger.warning("%d images not sent, their metadata has more than %d bytes", n_failed, limit)

    def _registry(self, config: DetectorConfig) -> Registry:
        registry = Registry(config.detector_name, PROGRAM, str(self._part.index))
        self._subscriber.register(registry)
        registry.add(metrics.PARTS_SENT, lambda: self.n_sent)
        registry.add(metrics.PARTS_UNWANTED, lambda: self.n_unwanted)
        registry.add(metrics.IMAGES_OVERWRITTEN, lambda: self.n_overwritten, source=SOURCE)
        registry.add(metrics.IMAGES_FAILED, lambda: self.n_failed, source=SOURCE)
        registry.add(metrics.SERVER_CONNECTIONS, lambda: self._network.n_subscribers)
        return registry

    def _pairs(self, period: Period) -> Mapping[str, object]:
        return {
            "image_part": self._part.index,
            **period.rate(metrics.PARTS_SENT),
            "n_receivers": period.total(metrics.SERVER_CONNECTIONS),
            "n_unwanted": period.count(metrics.PARTS_UNWANTED),
            "n_overwritten": period.count(metrics.IMAGES_OVERWRITTEN),
            "n_failed": period.count(metrics.IMAGES_FAILED),
            "n_dropped": period.count(metrics.MESSAGES_LOST),
            "n_malformed": period.count(metrics.MESSAGES_REJECTED),
        }

    def close(self) -> None:
        """Deliver what is on its way, for up to a second, and disconnect."""
        self._network.close()
        self._subscriber.close()


def pair_parser(program: str, description: str, address_help: str) -> ArgumentParser:
    """Return the command line of one end of a pair."""
    parser = ArgumentParser(program, description)
    parser.add_config()
    parser.add_argument("stream_address", type=stream_address, help=address_help)
    parser.add_argument(
        "image_part",
        type=IntegerRange(0, 2**31 - 1),
        help="number of the pair, from 0; without a part of the image the service ends at once",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a sender. Return the exit code."""
    description = "Send a part of every image to another server."
    return run(pair_parser(PROGRAM, description, "address to bind, tcp://HOST:PORT"), _serve, argv)


def _serve(config: DetectorConfig, args: argparse.Namespace, stop: StopRequest) -> None:
    part = part_of(config, args.image_part)
    # Deployments start a sender for every part there may be, and expect those without one to be quiet.
    if part is None:
        return
    with StreamSender(config, args.stream_address, part) as sender:
        ready("part %d of %s at %s", part.index, config.detector_name, args.stream_address)
        sender.serve(stop)
