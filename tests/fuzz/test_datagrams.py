"""Any datagrams at the ports of a detector: they are counted by kind, and no image has their bytes."""

from __future__ import annotations

import contextlib
import re
import secrets
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support.peers.udp_detectors import UdpSender, free_udp_ports, gigafrost_packet, sls_packet
from support.processes.deployment import Deployment, Service, wait_until
from support.processes.stream_readers import StreamReader
from support.processes.udp_modules import EIGER, start_converters
from support.processes.udp_receivers import PROGRAMS, totals
from support.tools.fuzzing import Health, is_longer

from stddaq.config import DetectorConfig
from stddaq.dataplane.metadata import GOOD_IMAGE
from stddaq.sources.udp.faults import FaultRates
from stddaq.sources.udp.packet_sink import PacketSink
from stddaq.udp.packets import packets_of

DETECTORS: dict[str, dict[str, Any]] = {
    "gigafrost": {"n_modules": 8, "image_pixel_height": 280, "image_pixel_width": 528},
    "eiger": EIGER,
    "jungfrau-raw": {
        "detector_type": "jungfrau-raw",
        "image_pixel_height": 512,
        "image_pixel_width": 1024,
        "module_positions": {"0": [0, 0, 1023, 511]},
    },
}
SIZES = [0, 1, 8, 31, 32, 33, 47, 48, 4143, 4144, 4145, 6368, 7160, 7161, 8240, 9000, 65507]
N_AT_ONCE = 20


class Attacker:
    """Sends datagrams to all ports: random bytes, packets of every detector, changed packets."""

    def __init__(self, config: DetectorConfig, random: np.random.Generator) -> None:
        self._sender, self._random = UdpSender(config.start_udp_port), random
        shape = config.image_shape
        self._packets = [
            gigafrost_packet(0, 0, random.bytes(7128), module=0, shape=shape),
            gigafrost_packet(0, 0, random.bytes(7128), module=3, shape=shape, scan_id=8),
            sls_packet(0, 0, random.bytes(4096), detector=1),
            sls_packet(0, 0, random.bytes(8192), detector=3, bunch_id=17.0),
        ]
        self.n_sent = 0

    def send(self, n_modules: int) -> None:
        datagrams = [self._datagram() for _ in range(N_AT_ONCE)]
        for module in range(n_modules):
            self._sender.send(module, datagrams)
        self.n_sent += N_AT_ONCE

    def _datagram(self) -> bytes:
        random = self._random
        if random.integers(3) == 0:
            return random.bytes(int(random.choice(SIZES)))
        packet = bytearray(self._packets[random.integers(len(self._packets))])
        for place in random.integers(0, 48, random.integers(4)):
            packet[place] = random.integers(256)
        return bytes(packet)

    def close(self) -> None:
        self._sender.close()


class Chain:
    """The receivers, converters and synchroniser of a detector, and the detector."""

    def __init__(self, deployment: Deployment) -> None:
        self.config = config = DetectorConfig.parse(deployment.config)
        program = PROGRAMS[config.detector_type]
        self.receivers = [deployment.start(program, m, ready=None) for m in range(config.n_modules)]
        self.others = list(start_converters(deployment, *range(config.n_modules)).values())
        for receiver in self.receivers:
            receiver.wait_for_line("n_subscribers=1")
        self.detector = PacketSink(config, "127.0.0.1", FaultRates(), 1, 1)
        self.sent: dict[int, np.ndarray] = {}
        self.n_packets = packets_of(config, 0).n_packets

    def send(self, image_id: int) -> None:
        """Send an image whose pixels are its own."""
        pixels = self.detector.begin(image_id)
        pixels[...] = image_id % 251 + 1
        self.sent[image_id] = pixels.copy()
        self.detector.commit(image_id)

    def receives(self, reader: StreamReader, image_id: int) -> bool:
        """Send an image. Return whether it was announced; fail if an announced image is not what was sent."""
        self.send(image_id)
        deadline = time.monotonic() + 0.5
        while (image := reader.receive_one(deadline - time.monotonic())) is not None:
            if image.status != GOOD_IMAGE:
                continue
            expected = self.sent[image.image_id].copy()
            if self.config.detector_type == "eiger":
                expected[:, 256:258] = expected[:, 514:516] = expected[:, 772:774] = 0
            assert np.array_equal(image.pixels, expected)
            if image.image_id == image_id:
                return True
        return False


@pytest.mark.slow
@pytest.mark.parametrize("detector", DETECTORS)
def test_any_datagrams_at_every_port_harm_nothing(
    make_deployment: Callable[..., Deployment], detector: str
) -> None:
    seed = secrets.randbits(32) if is_longer() else 0
    print(f"seed of the datagrams: {seed}")
    deployment = make_deployment(start_udp_port=free_udp_ports(8), **DETECTORS[detector])
    chain = Chain(deployment)
    with contextlib.ExitStack() as opened:
        opened.callback(chain.detector.close)
        reader = opened.enter_context(StreamReader(deployment))
        assert any(chain.receives(reader, image_id) for image_id in range(1, 20))
        attacker = Attacker(chain.config, np.random.default_rng(seed))
        opened.callback(attacker.close)
        health = Health([*chain.receivers, *chain.others])
        end = time.monotonic() + (60.0 if is_longer() else 4.0)
        while time.monotonic() < end:
            attacker.send(chain.config.n_modules)
            image = reader.receive_one(0.01)
            assert image is None or image.status != GOOD_IMAGE
        health.check()
        n_good = 0
        for image_id in range(20, 60):
            n_good = n_good + 1 if chain.receives(reader, image_id) else 0
            if n_good == 3:
                break
        assert n_good == 3
    for receiver in chain.receivers:
        check_account(receiver, attacker.n_sent + len(chain.sent) * chain.n_packets)


def check_account(receiver: Service, n_sent: int) -> None:
    """Check that all datagrams were counted, and each kind of bad ones named at most once a period."""

    def n_counted() -> float:
        counts = totals(receiver)
        bad = sum(n for key, n in counts.items() if key.startswith("n_bad_"))
        return counts.get("processed_times", 0) + bad + counts.get("n_dropped_by_kernel", 0)

    wait_until(lambda: n_counted() >= n_sent, what=f"{n_sent} datagrams, not {totals(receiver)}")
    assert n_counted() == n_sent
    counts, lines = totals(receiver), list(receiver.stdout)
    n_periods = sum("processed_times=" in line for line in lines)
    for kind in (key.removeprefix("n_bad_") for key, n in counts.items() if key.startswith("n_bad_") and n):
        n_named = sum(
            re.search(rf"UDP port \d+: {kind}: expected .*, from 127.0.0.1:\d+", line) is not None
            for line in lines
        )
        assert 1 <= n_named <= n_periods + 1
    assert counts["n_bad_size"]
