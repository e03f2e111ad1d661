"""The compiled loops of converters: what they convert, and what they leave to Python."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
import zmq
from support.processes.deployment import Deployment, wait_until
from support.processes.udp_modules import EIGER

from stddaq.closing import Closing
from stddaq.config import DetectorConfig
from stddaq.config.modules import JUNGFRAU_SIZE
from stddaq.dataplane.connections import open_socket
from stddaq.dataplane.endpoints import converted_frames
from stddaq.dataplane.ipc_sockets import Binding
from stddaq.dataplane.ring_buffer import RingBuffer
from stddaq.udp.conversion import (
    Conversion,
    EigerConversion,
    GigaFrostConversion,
    JungfrauConversion,
    JungfrauRawConversion,
)
from stddaq.udp.frame_message import BY_CONVERTER, IN_ORDER, frame_layout, parse_frame
from stddaq.udp.frame_ring import FramePublisher, FrameSubscriber, image_memory
from stddaq.udp.jungfrau_gains import GainParameters, GainTables
from stddaq.udp.steady_converter import SteadyConverter

GIGAFROST: dict[str, Any] = {"n_modules": 8, "image_pixel_height": 24, "image_pixel_width": 72}
JUNGFRAU: dict[str, Any] = {
    "detector_type": "jungfrau-raw",
    "image_pixel_height": 512,
    "image_pixel_width": 1024,
    "module_positions": {"0": [0, 0, 1023, 511]},
}
MODULE, LINK_SET = 0, 1
TURN_S = 0.02
RANDOM = np.random.default_rng(0)


def gains() -> GainParameters:
    def tables() -> GainTables:
        pedestals, factors = RANDOM.uniform(1, 9, (2, 3, *JUNGFRAU_SIZE)).astype(np.float32)
        return GainTables.of(pedestals, factors, None)

    return GainParameters(tables(), tables())


CONVERSIONS: dict[str, tuple[dict[str, Any], Callable[[DetectorConfig], Conversion]]] = {
    "gigafrost": (GIGAFROST, lambda config: GigaFrostConversion(config, MODULE)),
    "eiger": (EIGER, lambda config: EigerConversion(config, MODULE)),
    "jungfrau-raw": (JUNGFRAU, lambda config: JungfrauRawConversion(config, MODULE)),
    "jungfrau-converted": (
        JUNGFRAU | {"detector_type": "jungfrau-converted"},
        lambda config: JungfrauConversion(config, MODULE, gains()),
    ),
}


class Loop(Closing):
    """A receiver and a synchroniser of the test, and the loop between them."""

    def __init__(self, config: DetectorConfig, conversion: Conversion) -> None:
        self._stack, self.layout = ExitStack(), frame_layout(config.detector_type)
        enter = self._stack.enter_context
        self.publisher = enter(FramePublisher(config, MODULE))
        self.subscriber = enter(FrameSubscriber(config, MODULE))
        self.ring = enter(RingBuffer(config, "image", n_parts=config.n_modules))
        context = zmq.Context()
        self._stack.callback(context.destroy)
        self.converted, self._pushed = open_socket(context, zmq.PULL), open_socket(context, zmq.PUSH)
        self._pushed.immediate = 1
        self._endpoint = converted_frames(config.detector_name)
        self._pushed.connect(self._endpoint)
        sockets = self.subscriber.socket, self.subscriber.monitor, self._pushed
        link_set = LINK_SET if config.detector_type == "gigafrost" else None
        addresses = [socket.underlying for socket in sockets]
        self.steady = SteadyConverter(conversion, MODULE, link_set, addresses)
        # A socket that ZeroMQ does not know.
        self._no_socket = np.zeros(4096, np.uint8)
        addresses[1] = self._no_socket.ctypes.data
        self.without_monitor = SteadyConverter(conversion, MODULE, link_set, addresses)
        self._stop, self._stopper = os.pipe()
        self.mark = self.n_converted = self.n_overwritten = 0
        wait_until(self.publisher.count_subscribers)

    def bind(self) -> None:
        """Be a synchroniser."""
        self._stack.callback(Binding(self.converted, self._endpoint).close)
        wait_until(lambda: self._pushed.poll(0, zmq.POLLOUT))

    def publish(self, frame_id: int, **fields: int) -> np.ndarray:
        """Publish a frame of random pixels. Return its bytes."""
        message = np.zeros((), self.layout)
        for name, value in fields.items():
            message[name] = value
        message["id"] = frame_id
        slot = self.publisher.begin(frame_id)
        slot[:] = RANDOM.integers(0, 256, slot.shape, np.uint8)
        self.publisher.commit(message)
        return slot.copy()

    def run(self) -> bool:
        """Run the loop for a moment. Return whether a message is left to Python."""
        memory = image_memory(self.ring)
        due = time.monotonic() + TURN_S
        self.steady.convert(self.subscriber.frames, memory, self.mark, due, self._stop)
        self.mark = self.steady.mark
        n_converted, n_overwritten = self.steady.counts
        self.n_converted += n_converted
        self.n_overwritten += n_overwritten
        return self.steady.received is not None or self.steady.unsent is not None

    def trust(self) -> None:
        """Check the connections."""
        assert not list(self.subscriber.receive(0))

    def close(self) -> None:
        self._stack.close()
        os.close(self._stop)
        os.close(self._stopper)


@pytest.fixture
def loop(make_deployment: Callable[..., Deployment]) -> Iterator[Loop]:
    config = DetectorConfig.parse(make_deployment(**GIGAFROST).config)
    with Loop(config, GigaFrostConversion(config, MODULE)) as loop:
        yield loop


@pytest.mark.slow
@pytest.mark.parametrize("name", CONVERSIONS)
def test_frames_of_a_receiver_are_converted_and_pushed_with_their_marks(
    make_deployment: Callable[..., Deployment], name: str
) -> None:
    keys, make = CONVERSIONS[name]
    config = DetectorConfig.parse(make_deployment(**keys).config)
    conversion = make(config)
    with Loop(config, conversion) as loop:
        loop.bind()
        loop.trust()
        for frame_id in (1006, 1007, 1008):
            # Of a Jungfrau, the frame with the odd id has high gain.
            fields = {"daq_rec": frame_id} if "daq_rec" in (loop.layout.names or ()) else {}
            frame = loop.publish(frame_id, **fields)
            before = loop.ring.image(frame_id).copy()
            wait_until(lambda: not loop.run() and loop.converted.poll(0))
            message = parse_frame(loop.converted.recv(), loop.layout)
            assert message is not None
            assert message["id"] == frame_id
            assert name != "gigafrost" or message["link_set"] == LINK_SET
            assert int(message["sequence"]) == loop.mark | BY_CONVERTER | IN_ORDER
            assert loop.ring.mark(frame_id, MODULE) == message["sequence"]
            assert loop.ring.stamp(frame_id) == 0
            counts = dict(conversion.pixel_counts)
            conversion.pixel_counts.update(dict.fromkeys(counts, 0))
            conversion.convert(frame, before, message)
            assert np.array_equal(loop.ring.image(frame_id), before, equal_nan=before.dtype.kind == "f")
            assert conversion.pixel_counts == counts
            conversion.pixel_counts.update(dict.fromkeys(counts, 0))
        assert (loop.n_converted, loop.n_overwritten, loop.mark) == (3, 0, 3)


def test_connections_that_cannot_be_checked_are_not_trusted(loop: Loop) -> None:
    loop.bind()
    loop.trust()
    loop.publish(5)
    loop.steady = loop.without_monitor
    wait_until(loop.run)
    assert (loop.n_converted, loop.n_overwritten) == (0, 0)
    assert loop.steady.received


def test_a_frame_whose_slot_was_overwritten_is_counted_and_not_pushed(loop: Loop) -> None:
    loop.bind()
    loop.trust()
    loop.publish(5)
    loop.publisher.begin(1005)
    wait_until(lambda: not loop.run() and loop.n_overwritten)
    assert (loop.n_converted, loop.n_overwritten) == (0, 1)
    assert loop.ring.mark(5, MODULE) == 0
    assert not loop.converted.poll(0)


@pytest.mark.parametrize("message", [b"", b"12345678", bytes(64), bytes(65), bytes(1000)], ids=len)
def test_a_message_of_another_receiver_is_left_to_python(loop: Loop, message: bytes) -> None:
    loop.trust()
    loop.publisher.send(message)
    wait_until(loop.run)
    assert loop.steady.received == message[:72]
    assert loop.n_converted == 0


def test_a_message_after_a_new_connection_is_left_to_python_which_checks_it(loop: Loop) -> None:
    loop.publish(5)
    wait_until(loop.run)
    assert loop.steady.received is not None
    (message,) = loop.subscriber.receive(0, [loop.steady.received])
    assert (message["id"], loop.n_converted) == (5, 0)


def test_a_message_that_no_synchroniser_takes_is_left_to_python(loop: Loop) -> None:
    loop.trust()
    loop.publish(5)
    wait_until(loop.run)
    assert loop.steady.unsent is not None
    message = parse_frame(loop.steady.unsent, loop.layout)
    assert message is not None
    assert int(message["sequence"]) == loop.ring.mark(5, MODULE) != 0
    assert loop.n_converted == 1
