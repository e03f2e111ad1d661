"""Acquisitions that follow one another, with losses between: from packets to announced images."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from support.peers.udp_detectors import UdpSender, eiger_frame, free_udp_ports
from support.processes.deployment import Deployment, wait_until
from support.processes.stream_readers import ReceivedImage, StreamReader
from support.processes.udp_modules import EIGER, start_converters

from stddaq.dataplane.metadata import GOOD_IMAGE

# Longer than frames of one image may be apart, and shorter than incomplete images wait.
PAUSE_S = 0.3


class Acquisitions:
    """An Eiger of two modules whose pixels have the number of the acquisition, and its services."""

    def __init__(self, deployment: Deployment) -> None:
        receivers = [deployment.start("std_udp_recv_eg", module, ready=None) for module in (0, 1)]
        self.services = start_converters(deployment, 0, 1)
        for receiver in receivers:
            receiver.wait_for_line("n_subscribers=1")
        self._sender = UdpSender(deployment.config["start_udp_port"])

    def send(self, acquisition: int, image_id: int, *modules: int) -> None:
        pixels = np.full((256, 512), acquisition, np.uint8)
        # Frames of one id in two acquisitions differ in their time stamps, in units of 100 ns.
        packets = eiger_frame(image_id, pixels, timestamp=time.monotonic_ns() // 100)
        for module in modules:
            self._sender.send(module, packets)

    def close(self) -> None:
        self._sender.close()


def acquisitions_of(image: ReceivedImage) -> set[int]:
    """Return the numbers of the acquisitions whose pixels an image has; the gaps between chips have 0."""
    return set(np.unique(image.pixels).tolist()) - {0}


# Module 1 lacks the last two images of the first acquisition. Of the second one, it lacks those before them,
# and module 0 all of these; image 1, if it shows the restart, is not lost.
@pytest.mark.fault(
    fault="network: the end of an acquisition and the start of the next lost by one module, {what}",
    state="running",
    promise="no good image has pixels of both; later images are good",
)
@pytest.mark.parametrize(
    ("what", "shows_restart"),
    [("the other one shows the restart", True), ("none shows the restart", False)],
)
def test_no_good_image_has_pixels_of_two_acquisitions(
    make_deployment: Callable[..., Deployment],
    what: str,
    shows_restart: bool,
    seen: Callable[[str], None],
) -> None:
    deployment = make_deployment(start_udp_port=free_udp_ports(2), **EIGER)
    detector = Acquisitions(deployment)
    good: list[ReceivedImage] = []

    def ids(acquisition: int) -> Sequence[int]:
        return [image.image_id for image in good if acquisitions_of(image) == {acquisition}]

    with StreamReader(deployment) as reader:

        def receive() -> None:
            while (image := reader.receive_one(0.05)) is not None:
                if image.status == GOOD_IMAGE and image.is_held:
                    good.append(image)

        last_id = 0

        def has_started() -> bool:
            nonlocal last_id
            last_id += 1
            detector.send(1, last_id, 0, 1)
            receive()
            return bool(ids(1))

        # The first frames are lost if a converter is not yet connected to the synchroniser.
        wait_until(has_started, 20.0, "good images of the first acquisition")
        next_id = last_id + 1
        detector.send(1, last_id + 1, 0)
        detector.send(1, last_id + 2, 0)
        last_sent = time.monotonic()
        wait_until(lambda: time.monotonic() >= last_sent + PAUSE_S)

        def is_good_again() -> bool:
            nonlocal next_id
            if next_id > last_id + 2:
                detector.send(2, next_id, 0)
            detector.send(2, next_id, 1)
            next_id += 1
            receive()
            return len(ids(2)) >= 3

        if shows_restart:
            detector.send(2, 1, 0)
        wait_until(is_good_again, 20.0, "good images of the second acquisition")
    detector.close()
    assert [acquisitions_of(image) for image in good] == [{1}] * len(ids(1)) + [{2}] * len(ids(2))
    assert max(ids(1)) <= last_id
    seen("no good image has pixels of both, the images after the losses are good")
