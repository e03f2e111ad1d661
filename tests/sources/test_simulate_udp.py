"""`stddaq simulate-udp`: valid packets of every pixel, and faults that are counted."""

from __future__ import annotations

import contextlib
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from support.peers.udp_detectors import free_udp_ports
from support.processes.deployment import Deployment, make_config
from support.processes.sources import refusal
from support.processes.udp_modules import EIGER_MODULE

from stddaq.config import DetectorConfig
from stddaq.sources.udp.faults import FaultRates
from stddaq.sources.udp.packet_sink import PacketSink
from stddaq.sources.udp.service import main
from stddaq.udp.assembly import FrameAssembly
from stddaq.udp.conversion import EigerConversion, GigaFrostConversion, JungfrauRawConversion
from stddaq.udp.frame_message import frame_layout
from stddaq.udp.frame_ring import FRAME_SLOTS
from stddaq.udp.geometry import frame_bytes
from stddaq.udp.packets import packets_of

EIGER = EIGER_MODULE | {"bit_depth": 8}
JUNGFRAU = {
    "detector_type": "jungfrau-raw",
    "n_modules": 2,
    "image_pixel_height": 1024,
    "image_pixel_width": 1024,
    "module_positions": {"0": [0, 0, 1023, 511], "1": [0, 512, 1023, 1023]},
}


def gigafrost(height: int, width: int) -> dict[str, Any]:
    return {
        "detector_type": "gigafrost",
        "n_modules": 8,
        "image_pixel_height": height,
        "image_pixel_width": width,
    }


def convert(
    config: DetectorConfig, module: int, frame: np.ndarray, image: np.ndarray, message: np.ndarray
) -> None:
    """Put a frame into its place in the image."""
    conversion = {
        "eiger": EigerConversion,
        "gigafrost": GigaFrostConversion,
        "jungfrau-raw": JungfrauRawConversion,
    }[config.detector_type]
    conversion(config, module).convert(frame, image, message)


class Receiver:
    """The port of one module, and the frames and images that its packets make."""

    def __init__(self, config: DetectorConfig, module: int) -> None:
        self._port = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._port.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * 2**20)
        self._port.bind(("127.0.0.1", config.start_udp_port + module))
        self._port.setblocking(False)
        self._packets, self._bytes = packets_of(config, module), frame_bytes(config)
        self._layout = frame_layout(config.detector_type)
        self._slots: dict[int, np.ndarray] = {}
        self.assembly = FrameAssembly(self._packets, self)
        self.messages: list[np.ndarray] = []
        self.frames: list[np.ndarray] = []
        self.n_datagrams = 0

    def begin(self, frame_id: int) -> np.ndarray:
        return self._slots.setdefault(frame_id % FRAME_SLOTS, np.zeros(self._bytes, np.uint8))

    def commit_bytes(self, frame_id: int, message: bytearray) -> None:
        self.messages.append(np.frombuffer(bytes(message), self._layout).reshape(()))
        self.frames.append(self._slots[frame_id % FRAME_SLOTS].copy())

    def receive(self) -> None:
        """Receive all datagrams. On the loopback interface they have arrived when they are sent."""
        header = self._packets.header
        with contextlib.suppress(BlockingIOError):
            while True:
                datagram = self._port.recv(65535)
                self.n_datagrams += 1
                payload = np.zeros((1, self._packets.payload_bytes), np.uint8)
                body = datagram[header.itemsize :]
                payload[0, : len(body)] = np.frombuffer(body, np.uint8)
                headers = np.frombuffer(datagram[: header.itemsize], header)
                lengths, times = np.array([len(datagram)], np.uint32), np.zeros((1, 2), np.int64)
                self.assembly.add(headers, payload, lengths, times, 1.0)

    def close(self) -> None:
        self._port.close()


class Detector:
    """A sink and the receivers of all its modules."""

    def __init__(self, keys: dict[str, Any], rates: FaultRates | None = None, link_sets: int = 1) -> None:
        self.config = DetectorConfig.parse(make_config(**keys, start_udp_port=free_udp_ports(16)))
        n = self.config.n_modules * link_sets
        self.receivers = [Receiver(self.config, module) for module in range(n)]
        self.sink = PacketSink(self.config, "127.0.0.1", rates or FaultRates(), 1, link_sets)
        self.images: dict[int, np.ndarray] = {}
        self._random = np.random.default_rng(3)

    def publish(self, image_id: int, highest: int) -> None:
        pixels = self.sink.begin(image_id)
        pixels[...] = self._random.integers(0, highest, pixels.shape)
        self.images[image_id] = pixels.copy()
        self.sink.commit(image_id)
        for receiver in self.receivers:
            receiver.receive()

    def image(self, position: int) -> np.ndarray:
        """Return an image that the converters make of the frames."""
        image = np.zeros(self.config.image_shape, self.config.dtype)
        for module, receiver in enumerate(self.receivers):
            convert(self.config, module, receiver.frames[position], image, receiver.messages[position])
        return image

    def close(self) -> None:
        self.sink.close()
        for receiver in self.receivers:
            receiver.close()


@pytest.fixture
def make_detector() -> Iterator[Callable[..., Detector]]:
    with contextlib.ExitStack() as made:

        def make(*arguments: Any, **options: Any) -> Detector:
            detector = Detector(*arguments, **options)
            made.callback(detector.close)
            return detector

        yield make


@pytest.mark.parametrize(
    ("keys", "highest"),
    [
        (gigafrost(8, 48), 4096),
        (gigafrost(280, 528), 4096),
        (gigafrost(252, 504), 4096),
        (gigafrost(252, 528), 4096),
        (gigafrost(4, 72), 4096),
        (EIGER, 2**8),
        (EIGER | {"bit_depth": 32}, 2**32),
        (JUNGFRAU, 2**14),
    ],
    ids=str,
)
def test_every_pixel_arrives(
    make_detector: Callable[..., Detector], keys: dict[str, Any], highest: int
) -> None:
    detector = make_detector(keys)
    for image_id in (5, 6):
        detector.publish(image_id, highest)
    for position, (image_id, sent) in enumerate(detector.images.items()):
        assert {int(receiver.messages[position]["id"]) for receiver in detector.receivers} == {image_id}
        received = detector.image(position)
        if keys["detector_type"] == "eiger":
            sent[:, [256, 257, 772, 773]] = sent[256:258] = sent[:, 514:516] = 0
        np.testing.assert_array_equal(received, sent)


def test_gigafrost_pixels_above_12_bits_are_limited(make_detector: Callable[..., Detector]) -> None:
    detector = make_detector(gigafrost(8, 48))
    detector.publish(5, 2**16)
    np.testing.assert_array_equal(detector.image(0), np.minimum(detector.images[5], 4095))


def test_images_alternate_between_two_sets_of_links(make_detector: Callable[..., Detector]) -> None:
    detector = make_detector(gigafrost(8, 48), link_sets=2)
    for image_id in range(4):
        detector.publish(image_id, 4096)
    for module, receiver in enumerate(detector.receivers):
        assert [int(message["id"]) for message in receiver.messages] == ([0, 2] if module < 8 else [1, 3])
        assert {int(message["link_set"]) for message in receiver.messages} == {module // 8}


def test_faults_are_counted_to_the_packet(make_detector: Callable[..., Detector]) -> None:
    share = 0.05
    rates = FaultRates(share, share, share, share, share, share, dead_modules=frozenset({3}))
    detector = make_detector(EIGER, rates)
    for image_id in range(20):
        detector.publish(image_id, 2**8)
    detector.sink._send_later(detector.sink._late)
    detector.sink._late = []
    counts, total = detector.sink._faults.counts, Counter[str]()
    for receiver in detector.receivers:
        receiver.receive()
        receiver.assembly.close()
        total.update(receiver.assembly.n_bad)
        total["datagrams"] += receiver.n_datagrams
        total["missing"] += receiver.assembly.n_missing
        total["repeated"] += receiver.assembly.n_repeated + receiver.assembly.n_late
    n_all = 20 * 4 * 32
    assert all(counts[kind] for kind in ("lost", "repeated", "swapped", "late", "wrong_size", "wrong_port"))
    assert counts["of_dead_modules"] == 20 * 32
    assert total["size"] == counts["wrong_size"]
    arrived = n_all - counts["lost"] - counts["of_dead_modules"] + counts["repeated"]
    assert total["datagrams"] == arrived
    assert total["missing"] >= counts["lost"] + counts["wrong_size"]


def test_a_detector_in_a_process_sends_to_receivers_and_restarts_its_ids(
    make_deployment: Callable[..., Deployment],
) -> None:
    deployment = make_deployment(**gigafrost(8, 48), start_udp_port=free_udp_ports(8))
    receiver = Receiver(DetectorConfig.load(deployment.config_path), 2)
    with contextlib.closing(receiver):
        options = ("--rate", 0, "--n-images", 10, "--restart-every", 4, "--first-id", 3)
        detector = deployment.run(deployment.stddaq, "simulate-udp", deployment.config_path, *options)
        assert detector.wait(60.0) == 0
        receiver.receive()
    assert [int(message["id"]) for message in receiver.messages] == [3, 4, 5, 6, 3, 4, 5, 6, 3, 4]
    assert receiver.assembly.n_restarts == 2
    detector.wait_for_line("packets of 10 images sent: 80")


def test_recorded_images_are_sent(make_deployment: Callable[..., Deployment]) -> None:
    deployment = make_deployment(**gigafrost(8, 48), start_udp_port=free_udp_ports(8))
    images = np.arange(2 * 8 * 48, dtype=np.uint16).reshape(2, 8, 48)
    path = deployment.config_path.with_suffix(".npy")
    np.save(path, images)
    config = DetectorConfig.load(deployment.config_path)
    with contextlib.ExitStack() as opened:
        receivers = [
            opened.enter_context(contextlib.closing(Receiver(config, module))) for module in range(8)
        ]
        options = ("--images", path, "--rate", 0, "--n-images", 3)
        detector = deployment.run(deployment.stddaq, "simulate-udp", deployment.config_path, *options)
        assert detector.wait(60.0) == 0
        image = np.zeros(config.image_shape, config.dtype)
        for module, receiver in enumerate(receivers):
            receiver.receive()
            assert len(receiver.frames) == 3
            convert(config, module, receiver.frames[1], image, receiver.messages[1])
    np.testing.assert_array_equal(image, images[1])


@pytest.mark.parametrize(
    ("keys", "options", "message"),
    [
        ({"detector_type": "pco"}, (), "detector_type: expected a detector that sends UDP packets, got"),
        (gigafrost(8, 48), ("--lost", 0.6, "--late", 0.6), "shares of faults: expected 1 or less together"),
        (
            gigafrost(8, 48),
            ("--address", "nowhere"),
            "--address: expected an IPv4 address, got 'nowhere'",
        ),
        (EIGER, ("--link-sets", 2), "--link-sets: expected 1 for eiger, got 2"),
        (
            gigafrost(8, 48) | {"start_udp_port": 65525},
            ("--link-sets", 2),
            "start_udp_port: expected a last port of 65535 or less, got 65540",
        ),
        ({"detector_type": "eiger", "module_positions": {}}, (), "module_positions: expected the position"),
    ],
)
def test_what_cannot_be_sent_is_refused(
    make_deployment: Callable[..., Deployment],
    capsys: pytest.CaptureFixture[str],
    keys: dict[str, Any],
    options: tuple[object, ...],
    message: str,
) -> None:
    deployment = make_deployment(**keys)
    assert message in refusal(capsys, main, deployment.config_path, *options)
