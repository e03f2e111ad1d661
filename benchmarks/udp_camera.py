"""A detector that sends the packets of the same pixels again and again, as fast as it is asked to."""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from stddaq.config import DetectorConfig
from stddaq.config.creation import example
from stddaq.sources.udp.faults import FaultRates
from stddaq.sources.udp.packet_sink import PacketSink

_EIGER_KEYS = ("detector_type", "n_modules", "image_pixel_height", "image_pixel_width", "module_positions")
_EXAMPLE = json.loads(example("eiger-500k"))
EIGER: dict[str, Any] = {key: _EXAMPLE[key] for key in _EIGER_KEYS}
JUNGFRAU: dict[str, Any] = {
    "image_pixel_height": 512,
    "image_pixel_width": 1024,
    "module_positions": {"0": [0, 0, 1023, 511]},
}
# Rings have 1000 slots or more. Images use only so many of them, which the first round of each measurement
# touches; they are still larger than the caches.
SLOTS_IN_USE, SLOT_STEP = 100, 1000
# Packets leave in bursts with this distance, as a network card hands them over.
BURST_S = 0.001
TIMEOUT_S = 30.0


class UdpCamera(PacketSink):
    """Sends whole images, or the packets of one module."""

    def __init__(self, config: DetectorConfig) -> None:
        """Put random pixels into the packets, of which no gain bit is set."""
        super().__init__(config, "127.0.0.1", FaultRates(), 0, 1)
        self._pixels[:] = np.random.default_rng(0).integers(0, 64, self._pixels.shape, np.uint8)
        self._in_step = self._messages[0][self._faults.next_image().order]
        self.n_packets = self._headers.array.shape[1]
        self._number = 0

    def send_image(self) -> int:
        """Send an image, all modules at the same time. Return its id."""
        return self._send_next(self._in_step)

    def send_frames(self, module: int, n: int, rate: float) -> None:
        """Send `n` frames of one module at `rate` per second, the packets evenly spread."""
        messages = self._messages[0][module * self.n_packets :][: self.n_packets]
        size = min(self.n_packets, max(1, round(self.n_packets * rate * BURST_S)))
        parts = [messages[start : start + size] for start in range(0, self.n_packets, size)]
        begin = time.perf_counter()
        for frame in range(n):
            for number, part in enumerate(parts):
                due = begin + (frame + number / len(parts)) / rate
                if (delay := due - time.perf_counter()) > 0:
                    time.sleep(delay)
                if number:
                    self._send(part)
                else:
                    self._send_next(part)

    def send_images(self, n: int, rate: float) -> None:
        """Send `n` images at `rate` per second."""
        begin = time.perf_counter()
        for i in range(n):
            if (delay := begin + i / rate - time.perf_counter()) > 0:
                time.sleep(delay)
            self.send_image()

    def _send_next(self, messages: np.ndarray) -> int:
        turn, slot = divmod(self._number, SLOTS_IN_USE)
        image_id = turn * SLOT_STEP + slot
        self._headers.fill(image_id, self.metadata)
        self._number += 1
        self._send(messages)
        return image_id


@contextmanager
def camera_process(*paths: Path) -> Iterator[Connection]:
    """Start a process that sends on request, with one camera for each configuration file.

    Requests are (number of the camera, name of a method, its arguments...), replies CPU seconds.
    """
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_send_when_asked, args=(theirs, paths), daemon=True)
    process.start()
    try:
        if not ours.poll(TIMEOUT_S):
            raise SystemExit("the camera did not start")
        ours.recv()
        yield ours
    finally:
        ours.send(None)
        process.join(TIMEOUT_S)


def _send_when_asked(pipe: Connection, paths: tuple[Path, ...]) -> None:
    """Run the camera's process."""
    cameras = [UdpCamera(DetectorConfig.load(path)) for path in paths]
    pipe.send("ready")
    while asked := pipe.recv():
        number, method, *arguments = asked
        begin = time.process_time()
        getattr(cameras[number], method)(*arguments)
        pipe.send(time.process_time() - begin)
    for camera in cameras:
        camera.close()


def sent(pipe: Connection) -> float:
    """Wait until the camera has done what it was asked for. Return the CPU seconds that it used."""
    if not pipe.poll(TIMEOUT_S):
        raise SystemExit("the camera does not answer")
    return pipe.recv()
