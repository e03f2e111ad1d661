"""`std_data_convert_gf`, `_eg` and `_jf`: put the frames of one module into their places of the images.

Each converter writes its part of the slot, then pushes the message of the frame to the module synchroniser,
which announces the image when all parts are there. A frame whose slot was overwritten while it was converted
is not pushed, so its image stays incomplete. Compiled code does so for the frames of a receiver of stddaq
(see `SteadyConverter`), and the rules in Python for all others.
"""

from __future__ import annotations

import argparse
import functools
import gc
import math
import secrets
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import zmq

from stddaq.closing import Closing
from stddaq.config import DetectorConfig
from stddaq.config.modules import GIGAFROST_MODULES
from stddaq.daemon import metrics
from stddaq.daemon.log import logger, ready
from stddaq.daemon.main import StopRequest, run
from stddaq.daemon.metrics import Registry
from stddaq.daemon.statistics import Period, StatisticsLine
from stddaq.dataplane import endpoints
from stddaq.dataplane.connections import open_socket
from stddaq.dataplane.ipc_sockets import Binding, Connection
from stddaq.dataplane.ring_buffer import RingBuffer
from stddaq.errors import ConfigError
from stddaq.text import mismatch
from stddaq.udp.arguments import UdpArgumentParser
from stddaq.udp.frame_message import BY_CONVERTER, IN_ORDER, frame_layout
from stddaq.udp.frame_ring import FRAME_SLOTS, FrameMemory, FrameSubscriber, image_memory
from stddaq.udp.geometry import frame_bytes
from stddaq.udp.jungfrau_gains import read_psi_files, read_std_daq_file

if TYPE_CHECKING:
    from stddaq.udp.conversion import Conversion
    from stddaq.udp.steady_converter import SteadyConverter

# A receiver (C++) without cursor may be writing this many frames ahead of its announcements.
MARGIN = 50
BATCH_LIMIT = 100
# What may be removed from outside is checked this often.
CHECK_PERIOD_S = 0.5


class Converter(Closing):
    """A running converter of one module: its rings, its sockets, and its loop."""

    def __init__(self, program: str, config: DetectorConfig, module: int, conversion: Conversion) -> None:
        """Raise `EndpointError` or `GeometryError`."""
        self._module, self._conversion = module, conversion
        self._is_gigafrost = config.detector_type == "gigafrost"
        self._config, self._part = config, module % config.n_modules
        self._waiting: deque[np.ndarray] = deque()
        # Marks of a converter that was restarted differ from those that are still in the ring.
        self._mark = secrets.randbelow(BY_CONVERTER)
        self.n_converted = self.n_overwritten = self.n_dropped = 0
        self._reported = (0, 0)
        self._frames = FrameSubscriber(config, module)
        try:
            self._use(RingBuffer(config, "image", n_parts=config.n_modules))
        except BaseException:
            self._frames.close()
            raise
        self._context = zmq.Context()
        self._socket = open_socket(self._context, zmq.PUSH)
        # Messages for a synchroniser that does not run are dropped: it could not announce those images later.
        self._socket.immediate = 1
        self.endpoint = endpoints.converted_frames(config.detector_name)
        self._connection = Connection(self._socket, self.endpoint)
        # A second converter of the module is refused, and `stddaq up` knows that this one is ready.
        self._presence = open_socket(self._context, zmq.PAIR)
        try:
            self._binding = Binding(self._presence, endpoints.converter(config.detector_name, module))
        except BaseException:
            self._context.destroy()
            del self._images
            self._ring.close()
            self._frames.close()
            raise
        sockets = self._frames.socket, self._frames.monitor, self._socket
        self._steady = _steady(conversion, config, module, [socket.underlying for socket in sockets])
        self._statistics = StatisticsLine(config, self._registry(program), self._pairs)

    def _use(self, ring: RingBuffer) -> None:
        self._ring, self._images = ring, image_memory(ring)

    def serve(self, stop: StopRequest) -> None:
        """Convert frames until asked to stop."""
        poller = zmq.Poller()
        poller.register(self._frames.socket, zmq.POLLIN)
        poller.register(stop.fileno(), zmq.POLLIN)
        while not stop.poll():
            if self._steady.is_possible and not self._waiting:
                self._convert_steady(stop)
            else:
                self._receive()
            for _ in range(min(len(self._waiting), BATCH_LIMIT)):
                self._convert(self._waiting.popleft())
            if not self._steady.is_possible and not self._waiting:
                poller.poll(max(0, math.ceil(self._statistics.due_in * 1000)))
            self._check()
            self._report()

    def _convert_steady(self, stop: StopRequest) -> None:
        """Convert the frames of a receiver of stddaq, by compiled code, until anything else is due."""
        steady, due = self._steady, time.monotonic() + min(CHECK_PERIOD_S, self._statistics.due_in)
        steady.convert(self._frames.frames, self._images, self._mark, due, stop.fileno())
        self._mark = steady.mark
        n_converted, n_overwritten = steady.counts
        self.n_converted += n_converted
        self.n_overwritten += n_overwritten
        if (message := steady.received) is not None:
            self._receive([message])
        elif (message := steady.unsent) is not None:
            self._send(message)

    def _receive(self, before: Sequence[bytes] = ()) -> None:
        """Receive all messages: only the newest says which slots of a C++ receiver are overwritten.

        `before`: received elsewhere.
        """
        waiting = self._waiting
        waiting.extend(self._frames.receive(FRAME_SLOTS, before))
        while len(waiting) > FRAME_SLOTS:
            waiting.popleft()
            self.n_overwritten += 1

    def _convert(self, message: np.ndarray) -> None:
        if self._is_overwritten(message):
            self.n_overwritten += 1
            return
        frame_id = int(message["id"])
        mark = self._next_mark(is_in_order=bool(message["sequence"]))
        image = self._ring.begin_part(frame_id, self._part, mark)
        self._conversion.convert(self._frames.frame(frame_id), image, message)
        if self._is_overwritten(message):
            self.n_overwritten += 1
            return
        self._push(message, mark)

    def _is_overwritten(self, message: np.ndarray) -> bool:
        if message["sequence"]:
            return not self._frames.holds(message)
        self._receive()
        waiting = self._waiting
        if not waiting:
            return False
        return len(waiting) >= FRAME_SLOTS - MARGIN or int(waiting[-1]["id"]) - int(message["id"]) >= (
            FRAME_SLOTS - MARGIN
        )

    def _next_mark(self, *, is_in_order: bool) -> int:
        """Return the mark of a frame, which is never 0."""
        self._mark = (self._mark + 1) % BY_CONVERTER
        return self._mark | BY_CONVERTER | (IN_ORDER if is_in_order else 0)

    def _push(self, message: np.ndarray, mark: int) -> None:
        pushed = message.copy()
        pushed["sequence"] = mark
        if self._is_gigafrost:
            pushed["link_set"] = self._module // GIGAFROST_MODULES
        self._send(pushed.tobytes())
        self.n_converted += 1

    def _send(self, message: bytes) -> None:
        try:
            self._socket.send(message, zmq.NOBLOCK)
        except zmq.Again:
            self.n_dropped += 1

    def _check(self) -> None:
        """Once a second, attach again to rings that were removed."""
        self._frames.check()
        self._connection.check()
        self._binding.check()
        self._ring.check(self._use)

    def _report(self) -> None:
        if not self._statistics.write_if_due():
            return
        now = self.n_overwritten, self.n_dropped
        n_overwritten, n_dropped = now[0] - self._reported[0], now[1] - self._reported[1]
        self._reported = now
        if n_overwritten:
            logger.warning("cannot follow the receiver: %d frames were overwritten", n_overwritten)
        if n_dropped:
            logger.warning("%s: %d frames not sent, no synchroniser takes them", self.endpoint, n_dropped)

    def _registry(self, program: str) -> Registry:
        module = str(self._module)
        registry = Registry(self._config.detector_name, program, module)
        registry.add(metrics.IMAGES_PROCESSED, lambda: self.n_converted, source=module)
        registry.add(metrics.IMAGES_OVERWRITTEN, lambda: self.n_overwritten, source=module)
        registry.add(metrics.IMAGES_FAILED, lambda: self.n_dropped, source=module)
        registry.add(metrics.MESSAGES_REJECTED, lambda: self._frames.n_malformed, reason="malformed")
        for reason in self._conversion.pixel_counts:
            count = functools.partial(self._conversion.pixel_counts.__getitem__, reason)
            registry.add(metrics.PIXELS_WITHOUT_VALUE, count, reason=reason)
        return registry

    def _pairs(self, period: Period) -> Mapping[str, object]:
        count = period.count
        return {
            "module_id": self._module,
            **period.rate(metrics.IMAGES_PROCESSED),
            "n_overwritten": count(metrics.IMAGES_OVERWRITTEN),
            "n_dropped": count(metrics.IMAGES_FAILED),
            "n_malformed": count(metrics.MESSAGES_REJECTED),
            **{
                f"n_pixels_{reason}": count(metrics.PIXELS_WITHOUT_VALUE, reason=reason)
                for reason in self._conversion.pixel_counts
            },
        }

    def close(self) -> None:
        """Disconnect and detach."""
        self._binding.close()
        self._context.destroy(linger=1000)
        self._frames.close()
        del self._images
        self._ring.close()


def main_gf(argv: Sequence[str] | None = None) -> int:
    """Run the converter of a GigaFRoST module. Return the exit code."""
    return _run("std_data_convert_gf", "GigaFRoST", argv)


def main_eg(argv: Sequence[str] | None = None) -> int:
    """Run the converter of an Eiger module. Return the exit code."""
    return _run("std_data_convert_eg", "Eiger", argv)


def main_jf(argv: Sequence[str] | None = None) -> int:
    """Run the converter of a Jungfrau module. Return the exit code."""
    return _run("std_data_convert_jf", "Jungfrau", argv)


# The detectors of each program.
_DETECTORS = {
    "std_data_convert_gf": ("gigafrost",),
    "std_data_convert_eg": ("eiger",),
    "std_data_convert_jf": ("jungfrau-raw", "jungfrau-converted"),
}


def _run(program: str, detector: str, argv: Sequence[str] | None) -> int:
    parser = UdpArgumentParser(program, f"Put the frames of one {detector} module into the images.")
    if program == "std_data_convert_jf":
        parser.add_argument(
            "-g",
            "--gains_and_pedestals",
            metavar="FILE",
            help="HDF5 file with the factors (/gains) and pedestals (/gainsRMS) of G0, G1 and G2",
        )
        parser.add_argument(
            "--gain_file",
            metavar="FILE",
            help="HDF5 file of PSI with gains in ADU per keV, with --pedestal_file",
        )
        parser.add_argument("--pedestal_file", metavar="FILE", help="HDF5 file of PSI with pedestals in ADU")
    parser.add_config()
    parser.add_module()

    def serve(config: DetectorConfig, args: argparse.Namespace, stop: StopRequest) -> None:
        if config.detector_type not in _DETECTORS[program]:
            allowed = " or ".join(_DETECTORS[program])
            raise ConfigError(mismatch("detector_type", f"{allowed} for {program}", config.detector_type))
        conversion = _conversion(config, args)
        load_compiled_code(conversion, config)
        with Converter(program, config, args.module_id, conversion) as converter:
            ready("module %d of %s, messages to %s", args.module_id, config.detector_name, converter.endpoint)
            converter.serve(stop)

    code = run(parser, serve, argv)
    # At its exit the interpreter would visit every object of the compiler, which takes 0.5 s.
    gc.freeze()
    return code


def _conversion(config: DetectorConfig, args: argparse.Namespace) -> Conversion:
    """Return the conversion of a detector's module. Raise `ConfigError`."""
    try:
        from stddaq.udp import conversion as conversions
    except ModuleNotFoundError as error:
        if error.name != "numba":
            raise
        advice = "pip install 'stddaq[udp]'"
        raise ConfigError(mismatch("package numba", "it, for the converters", "none", advice)) from error
    module = args.module_id
    if config.detector_type == "gigafrost":
        return conversions.GigaFrostConversion(config, module)
    if config.detector_type == "eiger":
        return conversions.EigerConversion(config, module)
    given = {name: getattr(args, name) for name in ("gains_and_pedestals", "gain_file", "pedestal_file")}
    names = [name for name, path in given.items() if path is not None]
    if config.detector_type == "jungfrau-raw":
        if names:
            expected = "no gains for jungfrau-raw, whose pixels are copied"
            raise ConfigError(mismatch("arguments", expected, f"--{names[0]}"))
        return conversions.JungfrauRawConversion(config, module)
    if names == ["gains_and_pedestals"]:
        parameters = read_std_daq_file(args.gains_and_pedestals, config, module)
    elif names == ["gain_file", "pedestal_file"]:
        parameters = read_psi_files(args.gain_file, args.pedestal_file, config, module)
    else:
        expected = "--gains_and_pedestals, or --gain_file and --pedestal_file, for jungfrau-converted"
        raise ConfigError(
            mismatch("arguments", expected, " and ".join(f"--{name}" for name in names) or "none")
        )
    return conversions.JungfrauConversion(config, module, parameters)


def _steady(
    conversion: Conversion, config: DetectorConfig, module: int, sockets: Sequence[int] = (0, 0, 0)
) -> SteadyConverter:
    # Only conversions need the extra `udp`.
    from stddaq.udp.steady_converter import SteadyConverter

    link_set = module // GIGAFROST_MODULES if config.detector_type == "gigafrost" else None
    return SteadyConverter(conversion, module % config.n_modules, link_set, sockets)


def load_compiled_code(conversion: Conversion, config: DetectorConfig) -> None:
    """Convert a frame of zeros, so that no frame waits for the compiler or its cache."""
    from stddaq.udp.compiling import make_ready

    message = np.zeros((), frame_layout(config.detector_type))
    frame, cursor = np.zeros(frame_bytes(config), np.uint8), np.zeros(1, np.uint64)
    image, steady = np.zeros(config.image_shape, config.dtype), _steady(conversion, config, 0)

    def first_call() -> None:
        conversion.convert(frame, image, message)
        frames, images = FrameMemory(frame[np.newaxis], cursor), FrameMemory(image[np.newaxis], cursor)
        steady.convert(frames, images, mark=0, due=0.0, stop=0)

    make_ready(first_call, conversion.kernel)
    conversion.pixel_counts.update(dict.fromkeys(conversion.pixel_counts, 0))
