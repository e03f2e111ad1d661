"""A source for the random-harm tests, which logs each publication before it makes it.

The pixels of each publication differ. Run as `chaos_source.py CONFIG LOG ORDERS FIRST_SERIAL FIRST_ID RATE
KIND`. The file ORDERS holds the probability of disorder (late, repeated, skipped and damaged images,
restarts of the ids); it may change at any time. KIND is `own` or `third-party`, which has no cursor segment,
like std_daq services (C++).
"""

from __future__ import annotations

import json
import os
import random
import signal
import struct
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from support.peers.cpp_services import CppSource

from stddaq.config import DetectorConfig
from stddaq.dataplane.image_publisher import ImagePublisher

GOOD, DAMAGED = 1, 2
# One publication in the log: serial number, image id, status.
RECORD = struct.Struct("<QQQ")
_DIGITS = 4
ORDERS_PERIOD_S = 0.05


def pixels_of(serial: int, image_id: int, shape: tuple[int, int]) -> np.ndarray:
    """Return the pixels of a publication: serial number and id in the first eight, then a pattern of both."""
    n_pixels = shape[0] * shape[1]
    pixels = np.arange(n_pixels, dtype=np.uint64) * np.uint64(31) + np.uint64(
        serial * 104729 + image_id * 7919 + 1
    )
    pixels = pixels.astype("<u2")
    pixels[:_DIGITS] = np.frombuffer(serial.to_bytes(2 * _DIGITS, "little"), "<u2")
    pixels[_DIGITS : 2 * _DIGITS] = np.frombuffer(image_id.to_bytes(2 * _DIGITS, "little"), "<u2")
    return pixels.reshape(shape)


def publication_of(pixels: np.ndarray) -> tuple[int, int] | None:
    """Return (serial number, image id) of an image; None if its pixels are not those of one publication."""
    first = np.ascontiguousarray(pixels).reshape(-1)[: 2 * _DIGITS].astype("<u2").tobytes()
    serial = int.from_bytes(first[: 2 * _DIGITS], "little")
    image_id = int.from_bytes(first[2 * _DIGITS :], "little")
    if not 0 < serial < 2**40 or not image_id < 2**40:
        return None
    if not np.array_equal(pixels, pixels_of(serial, image_id, (pixels.shape[0], pixels.shape[1]))):
        return None
    return serial, image_id


def _ids(first_id: int, chance: random.Random, orders: _Orders) -> Iterator[tuple[int, int]]:
    """Yield (image id, status) of each publication."""
    next_id = first_id
    while True:
        if chance.random() >= orders.disorder:
            yield next_id, GOOD
            next_id += 1
            continue
        kind = chance.choice(["late", "repeated", "skipped", "damaged", "restart"])
        if kind == "late":
            n = chance.randint(1, 3)
            yield from ((image_id, GOOD) for image_id in range(next_id + 1, next_id + n + 1))
            yield next_id, GOOD
            next_id += n + 1
        elif kind == "repeated":
            yield max(0, next_id - chance.randint(1, 5)), GOOD
        elif kind == "skipped":
            next_id += chance.randint(1, 20)
        elif kind == "damaged":
            yield next_id, DAMAGED
            next_id += 1
        elif chance.random() < 0.1:
            next_id = chance.choice([0, max(0, next_id - 500), next_id // 2])


class _Orders:
    """The probability of disorder, read from a file that may change."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read_at = 0.0
        self.disorder = 0.0
        self.read()

    def read(self) -> None:
        if time.monotonic() - self._read_at > ORDERS_PERIOD_S:
            self._read_at = time.monotonic()
            self.disorder = json.loads(self._path.read_text())


def main(argv: Sequence[str]) -> None:
    """Publish until SIGTERM or SIGHUP."""
    config_path, log_path, orders_path, serial, first_id, rate, kind = argv
    ended = False

    def end(_signal: int, _frame: object) -> None:
        nonlocal ended
        ended = True

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGHUP, end)
    content = json.loads(Path(config_path).read_text())
    config = DetectorConfig.parse(content)
    orders = _Orders(Path(orders_path))
    log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    number, period_s = int(serial), 1 / float(rate)
    source = ImagePublisher(config) if kind == "own" else CppSource(content)
    with source:
        print("ready", flush=True)
        due = time.monotonic()
        for image_id, status in _ids(int(first_id), random.Random(number), orders):
            if ended:
                break
            orders.read()
            os.write(log, RECORD.pack(number, image_id, status))
            if isinstance(source, ImagePublisher):
                source.count_subscribers()
                source.metadata.gf.store_image = True
            source.publish(image_id, pixels_of(number, image_id, config.image_shape), status)
            number += 1
            due = max(due + period_s, time.monotonic() - 0.1)
            time.sleep(max(0.0, due - time.monotonic()))


if __name__ == "__main__":
    main(sys.argv[1:])
