"""Cameras that send bsread: the simulated one, and one in the test's process that sends any message."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import zmq
from support.processes.deployment import Deployment, Service, console_script, wait_until
from support.processes.recording import pixels_of

from stddaq.closing import Closing
from stddaq.sources.simulated.scenes import Scene
from stddaq.wire.bsread import Channel, Compression, MessageEncoder, encode_value

PCO = {"detector_type": "pco"}
NAME = "CAM:FPICTURE"


def start_receiver(deployment: Deployment, address: str, *args: object) -> Service:
    """Start `std_bsread_recv` at `address`."""
    return deployment.run(
        console_script("std_bsread_recv"), *args, deployment.config_path, address, ready="ready"
    )


def start_camera(deployment: Deployment, *args: object, port: int = 0) -> tuple[Service, str]:
    """Start `stddaq simulate-pco`. Return it and its address."""
    command = (deployment.stddaq, "simulate-pco", deployment.config_path, f"tcp://127.0.0.1:{port}")
    camera = deployment.run(*command, *args)
    return camera, camera.wait_for_line(r"ready: .* on (tcp://[\d.:]+)")[1]


@functools.cache
def simulated_scene(shape: tuple[int, int]) -> Scene:
    """Return the scene of the simulated camera, which takes a second to make for large images."""
    return Scene("rings", shape, np.dtype("<u2"))


def totals(receiver: Service) -> dict[str, int]:
    """Return the counters of the newest statistics line."""
    for line in reversed(receiver.stdout):
        if "n_skipped_ids=" in line:
            pairs = line.split(" ")[-2].split(",")
            return {key: int(value) for key, value in (p.split("=") for p in pairs) if value.isdecimal()}
    return {}


def wait_for_totals(receiver: Service, **expected: int) -> dict[str, int]:
    """Wait until each of the counters has at least the expected value."""

    def reached() -> bool:
        found = totals(receiver)
        return all(found.get(key, 0) >= value for key, value in expected.items())

    wait_until(reached, what=f"{expected} in\n{receiver.output}")
    return totals(receiver)


class Camera(Closing):
    """Binds a PUSH (or PUB) socket in the test's own process; a context manager."""

    def __init__(self, shape: tuple[int, int] = (32, 48), kind: int = zmq.PUSH, port: int = 0) -> None:
        self.shape = shape
        self._context = zmq.Context()
        self.socket = self._context.socket(kind)
        self.socket.linger = 2000
        self.socket.sndtimeo = 60_000
        self._bind(port)
        self.address = self.socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self.taken_ns = time.time_ns()

    def _bind(self, port: int) -> None:
        def bound() -> bool:
            try:
                self.socket.bind(f"tcp://127.0.0.1:{port}")
            except zmq.ZMQError:
                return False
            return True

        wait_until(bound, what=f"port {port}")

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def message(
        self,
        image_id: int,
        pixels: np.ndarray | None = None,
        compression: Compression = "none",
        taken_ns: int | None = None,
        **channel: Any,
    ) -> list[bytes]:
        """Return a valid message, 1 ms after the last; `channel` replaces fields of its data header."""
        if pixels is None:
            pixels = pixels_of(image_id, self.shape)
        if taken_ns is None:
            self.taken_ns += 10**6
            taken_ns = self.taken_ns
        described = Channel.of_image(NAME, pixels.shape, pixels.dtype, compression)
        value = encode_value(described, pixels)
        announced = Channel.model_validate(described.model_dump() | channel)
        parts = MessageEncoder([announced]).message(image_id, *divmod(taken_ns, 10**9), [value])
        return [bytes(part) for part in parts]

    def send(self, *messages: Sequence[bytes]) -> None:
        """Send messages unchanged."""
        for parts in messages:
            self.socket.send_multipart(parts)

    def send_images(self, ids: Iterable[int], **how: Any) -> None:
        """Send good images."""
        for image_id in ids:
            self.send(self.message(image_id, **how))

    def close(self) -> None:
        self._context.destroy(linger=2000)
