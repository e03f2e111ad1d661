"""The receiver of a UDP module as a real process: packets to it, and the frames that it announces."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from support.peers.udp_detectors import UdpSender
from support.processes.deployment import Deployment, Service, wait_until

from stddaq.config import DetectorConfig
from stddaq.udp.frame_ring import FrameSubscriber

PROGRAMS = {
    "gigafrost": "std_udp_recv_gf",
    "eiger": "std_udp_recv_eg",
    "jungfrau-raw": "std_udp_recv_jf",
    "jungfrau-converted": "std_udp_recv_jf",
}

# Frames that lack packets wait so long, unless later ones follow.
IDLE_TIME_S = 3


@dataclass
class ReceivedFrame:
    """An announced frame, copied when its message arrived."""

    message: np.ndarray
    pixels: bytes

    @property
    def frame_id(self) -> int:
        return int(self.message["id"])

    @property
    def n_missing(self) -> int:
        return int(self.message["n_missing_packets"])


def totals(service: Service) -> dict[str, float]:
    """Return the sums of all statistics lines of a receiver or synchroniser."""
    sums: dict[str, float] = {}
    for line in list(service.stdout):
        if match := re.search(r"detector=\S+?,(\S+) \d+$", line):
            for key, value in (pair.split("=") for pair in match[1].split(",")):
                if key != "source":
                    sums[key] = sums.get(key, 0.0) + float(value)
    return sums


def with_idle_time(options: Sequence[object]) -> Sequence[object]:
    """Return the options with an idle time, unless it is among them.

    By default a frame is closed 0.1 s after its last packet, shorter than pauses of the test.
    """
    return options if "--idle-time" in options else (*options, "--idle-time", IDLE_TIME_S)


class Module:
    """A running receiver, a sender to its port, and a subscriber to its frames."""

    def __init__(self, deployment: Deployment, module: int, *options: object) -> None:
        self.deployment, self.module = deployment, module
        self.config = DetectorConfig.load(deployment.config_path)
        self.sender = UdpSender(self.config.start_udp_port)
        self.service: Service = deployment.start(
            PROGRAMS[self.config.detector_type], module, *with_idle_time(options), ready="ready"
        )
        self._subscriber = FrameSubscriber(self.config, module)
        wait_until(lambda: self.totals().get("n_subscribers"), what="the subscription")

    def send(self, *packets: bytes) -> None:
        self.sender.send(self.module, packets)

    def receive(self, n: int) -> list[ReceivedFrame]:
        """Wait until `n` frames were announced, and return them."""
        frames: list[ReceivedFrame] = []

        def collect() -> bool:
            for message in self._subscriber.receive(n - len(frames)):
                frame = ReceivedFrame(message, self._subscriber.frame(int(message["id"])).tobytes())
                assert self._subscriber.holds(message)
                frames.append(frame)
            return len(frames) == n

        wait_until(collect, what=f"{n} frames")
        return frames

    def totals(self) -> dict[str, float]:
        """Return the sums of all statistics lines."""
        return totals(self.service)

    def wait_for_total(self, key: str, value: float) -> None:
        """Wait until a count of the statistics has reached `value`, and check that it is not more."""
        wait_until(lambda: self.totals().get(key, 0) >= value, what=f"{key}={value}, not {self.totals()}")
        assert self.totals()[key] == value

    def close(self) -> None:
        self._subscriber.close()
        self.sender.close()


MakeModule = Callable[..., Module]
