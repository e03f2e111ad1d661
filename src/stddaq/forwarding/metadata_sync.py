"""`std_data_sync_metadata`: announces images that come whole, in the order of the metadata stream."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence

import zmq

from stddaq.config import DetectorConfig
from stddaq.daemon.arguments import ArgumentParser, stream_address
from stddaq.daemon.log import ready
from stddaq.daemon.main import StopRequest, run
from stddaq.forwarding.messages import MAX_METADATA_BYTES, QUEUED_MESSAGES, parse_forwarded
from stddaq.forwarding.network import NetworkSubscriber
from stddaq.forwarding.parts import number_of_pairs
from stddaq.forwarding.pixel_sync import DEFAULT_TIMEOUT_S, PixelSync
from stddaq.forwarding.synchroniser import BATCH_LIMIT, Synchroniser

PROGRAM = "std_data_sync_metadata"


class MetadataSynchroniser(Synchroniser):
    """A running synchroniser of whole images."""

    def __init__(
        self, config: DetectorConfig, address: str, timeout: float, *, announces_incomplete: bool = False
    ) -> None:
        """Raise `EndpointError` and `GeometryError`."""
        self._announces_incomplete = announces_incomplete
        self._sync = PixelSync(number_of_pairs(config), config.n_slots, timeout)
        super().__init__(PROGRAM, config, self._sync)
        try:
            self._network = NetworkSubscriber(address, MAX_METADATA_BYTES, QUEUED_MESSAGES)
        except BaseException:
            super().close()
            raise
        # Without the monitor, a lost connection would be named up to a second later.
        for readable in (self._network.socket, self._network.monitor):
            self.poller.register(readable, zmq.POLLIN)

    def serve(self, stop: StopRequest) -> None:
        """Announce images until asked to stop."""
        self.poller.register(stop.fileno(), zmq.POLLIN)
        while not stop.poll():
            # Nothing is given up while its pixels may be among the queued messages.
            if max(self._receive_metadata(), self._receive_pixels()) < BATCH_LIMIT:
                self._publish(time.monotonic())
                self.sleep(self._sync.due_at)
            else:
                self._publish(-math.inf)
            self._network.check()
            self.check()

    def _receive_metadata(self) -> int:
        receive, now = self._network.socket.recv, time.monotonic()
        for n in range(BATCH_LIMIT):
            try:
                message = receive(zmq.NOBLOCK)
            except zmq.Again:
                return n
            metadata = parse_forwarded(message)
            if metadata is not None and self.accepts(metadata):
                self._sync.add_metadata(metadata, now)
        return BATCH_LIMIT

    def _receive_pixels(self) -> int:
        n, now = 0, time.monotonic()
        for metadata in self.receive():
            n += 1
            if metadata is not None:
                self._sync.add_pixels(metadata, now)
        return n

    def _publish(self, now: float) -> None:
        """Announce images with pixels. Give up those that are overdue at `now`."""
        for image in self._sync.take(now):
            if image.is_lost:
                self.lost.follow(image.metadata, image.number, f"not received through pair {image.pair}")
                if self._announces_incomplete:
                    self.announce_blank(image.metadata)
            else:
                self.lost.follow(image.metadata, image.number)
                self.announce(image.metadata, [(0, image.mark)] if image.mark else ())

    def close(self) -> None:
        self._network.close()
        super().close()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the synchroniser. Return the exit code."""
    parser = ArgumentParser(PROGRAM, "Announce images that come whole, in the order of a metadata stream.")
    parser.add_config()
    parser.add_argument(
        "metadata_stream_address",
        type=stream_address,
        help="address of std_metadata_stream on the other server, tcp://HOST:PORT",
    )
    parser.add_timeout("the pixels of an image", DEFAULT_TIMEOUT_S)
    parser.add_announce_incomplete("without pixels")
    return run(parser, _serve, argv)


def _serve(config: DetectorConfig, args: argparse.Namespace, stop: StopRequest) -> None:
    # Deployments start both synchronisers, and expect the other one to be quiet.
    if not config.sender_sends_full_images:
        return
    address, announces_incomplete = args.metadata_stream_address, args.announce_incomplete
    with MetadataSynchroniser(
        config, address, args.timeout, announces_incomplete=announces_incomplete
    ) as service:
        ready("%d pairs of %s at %s", number_of_pairs(config), config.detector_name, service.endpoint)
        service.serve(stop)
