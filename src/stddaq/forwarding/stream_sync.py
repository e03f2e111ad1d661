"""`std_data_sync_stream`: announces an image when all its parts have arrived from the other server."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence

import zmq

from stddaq.config import DetectorConfig
from stddaq.daemon.arguments import ArgumentParser
from stddaq.daemon.log import ready
from stddaq.daemon.main import StopRequest, run
from stddaq.forwarding.part_sync import DEFAULT_TIMEOUT_S, PartSync
from stddaq.forwarding.parts import parts_of
from stddaq.forwarding.synchroniser import BATCH_LIMIT, Synchroniser

PROGRAM = "std_data_sync_stream"


class StreamSynchroniser(Synchroniser):
    """A running synchroniser of parts."""

    def __init__(self, config: DetectorConfig, timeout: float) -> None:
        """Raise `EndpointError` and `GeometryError`."""
        self._sync = PartSync(len(parts_of(config)), config.n_slots, timeout)
        super().__init__(PROGRAM, config, self._sync)

    def serve(self, stop: StopRequest) -> None:
        """Announce images until asked to stop."""
        self.poller.register(stop.fileno(), zmq.POLLIN)
        while not stop.poll():
            # Nothing is given up while parts that it lacks may be among the queued messages.
            if self._receive() < BATCH_LIMIT:
                self._publish(time.monotonic())
                self.sleep(self._sync.due_at)
            self.check()

    def _receive(self) -> int:
        """Handle messages, and announce what is complete. Return their number."""
        n = 0
        for metadata in self.receive():
            n += 1
            if metadata is not None and self._sync.add(metadata, time.monotonic()):
                self._publish(-math.inf)
        return n

    def _publish(self, now: float) -> None:
        """Announce complete images. Give up those that are incomplete and overdue at `now`."""
        for image in self._sync.take(now):
            if image.lacking:
                parts = ", ".join(map(str, image.lacking))
                self.lost.follow(image.metadata, image.number, f"not received without part {parts}")
            else:
                self.lost.follow(image.metadata, image.number)
                self.announce(image.metadata, () if image.n_unmarked else image.marks)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the synchroniser. Return the exit code."""
    parser = ArgumentParser(PROGRAM, "Announce an image when all its parts have come from the other server.")
    parser.add_config()
    parser.add_timeout("a part", DEFAULT_TIMEOUT_S)
    return run(parser, _serve, argv)


def _serve(config: DetectorConfig, args: argparse.Namespace, stop: StopRequest) -> None:
    # Deployments start both synchronisers, and expect the other one to be quiet.
    if config.sender_sends_full_images:
        return
    with StreamSynchroniser(config, args.timeout) as service:
        ready("%d parts of %s at %s", len(parts_of(config)), config.detector_name, service.endpoint)
        service.serve(stop)
