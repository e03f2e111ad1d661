"""`std_stream_receive`: puts its part of every image from another server into the ring buffer.

It writes nothing before it knows that the part is complete. The synchroniser announces the images.
"""

from __future__ import annotations

import argparse
import math
import secrets
from collections.abc import Mapping, Sequence

import zmq

from stddaq.closing import Closing
from stddaq.config import DetectorConfig
from stddaq.daemon import metrics
from stddaq.daemon.log import event, logger, ready
from stddaq.daemon.main import StopRequest, run
from stddaq.daemon.metrics import Registry
from stddaq.daemon.statistics import Period, StatisticsLine
from stddaq.dataplane import endpoints
from stddaq.dataplane.connections import open_socket
from stddaq.dataplane.ipc_sockets import Binding, Connection
from stddaq.dataplane.metadata import ImageMetadata, MetadataRules
from stddaq.dataplane.ring_buffer import RingBuffer
from stddaq.dataplane.stream_counts import StreamCounts
from stddaq.forwarding.messages import MAX_METADATA_BYTES, parse_forwarded, serialise
from stddaq.forwarding.network import NetworkSubscriber
from stddaq.forwarding.parts import Part, number_of_pairs, part_of
from stddaq.forwarding.sender import pair_parser
from stddaq.text import mismatch

PROGRAM = "std_stream_receive"
BATCH_LIMIT = 100
# How long the start waits for a synchroniser.
SYNC_TIMEOUT_MS = 1000


class StreamReceiver(Closing):
    """A running receiver: the socket to the other server, the ring buffer, and the loop."""

    def __init__(self, config: DetectorConfig, address: str, part: Part) -> None:
        """Raise `EndpointError` and `GeometryError`."""
        self._part, self._is_full = part, config.sender_sends_full_images
        self._n_pairs = number_of_pairs(config)
        self._rules, self._counts = MetadataRules(config, "image"), StreamCounts()
        # Marks of a receiver that was restarted differ from those that are still in the ring. Any pair may
        # write a slot when images are sent whole, so they have one place for their marks.
        self._mark = secrets.randbits(62)
        self._place = 0 if self._is_full else part.index
        self.n_received = self.n_refused = self.n_dropped = 0
        self._refusal, self._has_named_short, self._n_dropped_reported = "", False, 0
        self._ring = RingBuffer(config, "image", n_parts=1 if self._is_full else self._n_pairs)
        self._context = zmq.Context()
        self._socket = open_socket(self._context, zmq.PUSH)
        # Messages for a synchroniser that does not run are dropped: it could not announce those images later.
        self._socket.immediate = 1
        self.endpoint = endpoints.received_parts(config.detector_name)
        self._connection = Connection(self._socket, self.endpoint)
        # A second receiver of the part is refused, and the synchroniser knows which ones run.
        self._presence = open_socket(self._context, zmq.PAIR)
        try:
            self._binding = Binding(self._presence, endpoints.receiver(config.detector_name, part.index))
            # The first parts would be dropped if they arrived before this connection.
            self._socket.poll(SYNC_TIMEOUT_MS, zmq.POLLOUT)
            self._network = NetworkSubscriber(address, part.length)
        except BaseException:
            self._context.destroy(linger=0)
            self._ring.close()
            raise
        self._statistics = StatisticsLine(config, self._registry(config), self._pairs)

    def _use(self, ring: RingBuffer) -> None:
        self._ring = ring

    def serve(self, stop: StopRequest) -> None:
        """Receive until asked to stop."""
        poller = zmq.Poller()
        poller.register(self._network.socket, zmq.POLLIN)
        poller.register(stop.fileno(), zmq.POLLIN)
        while not stop.poll():
            if self._receive() < BATCH_LIMIT:
                poller.poll(max(0, math.ceil(min(self._statistics.due_in, 0.2) * 1000)))
            self._network.check()
            self._connection.check()
            self._binding.check()
            self._ring.check(self._use)
            self._report()

    def _receive(self) -> int:
        """Handle the messages that have arrived, at most `BATCH_LIMIT`. Return their number."""
        receive = self._network.socket.recv_multipart
        for n in range(BATCH_LIMIT):
            try:
                frames = receive(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return n
            if len(frames) != 2:
                self._refuse("two parts: metadata and bytes of an image", f"{len(frames)} parts")
                continue
            metadata = parse_forwarded(frames[0].bytes)
            if metadata is None:
                self._refuse("the metadata of an image", f"{len(frames[0])} other bytes")
            elif self._accepts(metadata, len(frames[1])):
                self._put(metadata, frames[1].buffer)
        return BATCH_LIMIT

    def _accepts(self, metadata: ImageMetadata, length: int) -> bool:
        """Count a message. Return whether it is a complete part of this pair."""
        self._count(metadata)
        where = f"image {metadata.image_id}"
        pair, part = metadata.forwarding.pair, self._part
        if not self._rules.accepts(metadata):
            self._refusal = self._rules.problem(metadata) or ""
        elif (pair and pair != part.index + 1) or (
            self._is_full and metadata.image_id % self._n_pairs != part.index
        ):
            self._refusal = mismatch(
                where, f"part {part.index}", "another part", "check the addresses of senders and receivers"
            )
        elif length not in (part.length, part.cpp_length):
            self._refusal = mismatch(
                where, f"{part.length} bytes of part {part.index}", str(length), "the configurations differ"
            )
        else:
            return True
        self.n_refused += 1
        return False

    def _count(self, metadata: ImageMetadata) -> None:
        counts, n_restarts = self._counts, self._counts.n_restarts
        if counts.next_id < 0:
            event("part %d: the first image is %d", self._part.index, metadata.image_id)
        counts.receive(metadata.image_id, metadata.forwarding.message)
        if counts.n_restarts != n_restarts:
            event("the image ids restart (restart %d) with %d", counts.n_restarts, metadata.image_id)

    def _refuse(self, expected: str, got: str) -> None:
        self.n_refused += 1
        self._refusal = mismatch(self._network.address, expected, got)

    def _put(self, metadata: ImageMetadata, content: memoryview) -> None:
        """Put a part into its place, and push its metadata."""
        part, image_id = self._part, metadata.image_id
        self._mark += 1
        self._ring.begin_part(image_id, self._place, self._mark)
        place = self._ring.slot(image_id)[part.offset : part.offset + part.length]
        place[: len(content)] = content
        if len(content) < part.length:
            self._fill_short(place, len(content))
        metadata.forwarding.pair, metadata.forwarding.mark = part.index + 1, self._mark
        message = serialise(metadata)
        if len(message) > MAX_METADATA_BYTES:
            # As of a C++ receiver: the synchroniser judges by the ids whether the slot was used again.
            metadata.forwarding.ClearField("mark")
            message = metadata.SerializeToString()
        try:
            self._socket.send(message, zmq.NOBLOCK)
        except zmq.Again:
            self.n_dropped += 1
        self.n_received += 1

    def _fill_short(self, place: memoryview, length: int) -> None:
        """Set the bytes that a C++ sender leaves out to 0: those of an earlier image are there."""
        missing = len(place) - length
        place[length:] = bytes(missing)
        if not self._has_named_short:
            self._has_named_short = True
            logger.warning(
                "%s: the sender leaves out %d bytes at the end of part %d of every image, they are 0; "
                "choose max_number_of_forwarders_spawned so that it divides the image",
                self._network.address,
                missing,
                self._part.index,
            )

    def _report(self) -> None:
        if not self._statistics.write_if_due():
            return
        if self._refusal:
            logger.warning("parts are not accepted: %s", self._refusal)
            self._refusal = ""
        n_dropped = self.n_dropped - self._n_dropped_reported
        self._n_dropped_reported = self.n_dropped
        if n_dropped:
            logger.warning("%s: %d parts not announced, no synchroniser runs", self.endpoint, n_dropped)

    def _registry(self, config: DetectorConfig) -> Registry:
        registry = Registry(config.detector_name, PROGRAM, str(self._part.index))
        registry.add(metrics.PARTS_RECEIVED, lambda: self.n_received)
        registry.add(metrics.PARTS_LOST, lambda: self._counts.n_dropped)
        registry.add(metrics.PARTS_UNWANTED, lambda: self.n_dropped)
        registry.add(metrics.IDS_RESTARTED, lambda: self._counts.n_restarts)
        registry.add(metrics.MESSAGES_REJECTED, lambda: self.n_refused, reason="malformed")
        registry.add(metrics.SERVER_CONNECTIONS, lambda: self._network.n_connected)
        return registry

    def _pairs(self, period: Period) -> Mapping[str, object]:
        return {
            "image_part": self._part.index,
            **period.rate(metrics.PARTS_RECEIVED),
            "n_senders": period.total(metrics.SERVER_CONNECTIONS),
            "n_lost": period.count(metrics.PARTS_LOST),
            "n_unwanted": period.count(metrics.PARTS_UNWANTED),
            "n_malformed": period.count(metrics.MESSAGES_REJECTED),
        }

    def close(self) -> None:
        """Disconnect and detach."""
        self._network.close()
        self._binding.close()
        self._context.destroy(linger=1000)
        self._ring.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Run a receiver. Return the exit code."""
    description = "Receive a part of every image from another server."
    return run(pair_parser(PROGRAM, description, "address of the sender, tcp://HOST:PORT"), _serve, argv)


def _serve(config: DetectorConfig, args: argparse.Namespace, stop: StopRequest) -> None:
    part = part_of(config, args.image_part)
    # As quiet as a sender without a part.
    if part is None:
        return
    with StreamReceiver(config, args.stream_address, part) as receiver:
        ready("part %d of %s from %s", part.index, config.detector_name, args.stream_address)
        receiver.serve(stop)
