"""The cost of a writer, driver and live stream relative to bare loops, in half a minute: `make ratios`.

It fails when a ratio has grown by a fifth over the kept one; `make ratios ARGS=--keep` keeps the medians of
three measurements.
Each ratio is that of two minima of CPU time over alternating rounds: other processes make a round more
expensive, but hardly ever cheaper. A ratio that has grown is measured again, up to eight times in all, so
that a busy machine alone does not make it fail.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import live_stream
import zmq
from rig import Rig

from stddaq.closing import exit_at_signals
from stddaq.dataplane.metadata import ImageMetadata
from stddaq.wire.writer_messages import encode_record_image

KEPT = Path(__file__).with_name("ratios.json")
# A ratio may be this much larger than the kept one.
LIMIT = 1.2
ATTEMPTS = 8
KEEP_OF = 3
ROUNDS = 5
# Each round of a live stream starts a subscriber, and takes four seconds.
STREAM_ROUNDS = 2
# A short loop takes twice the CPU time while the other thread of its core is busy, sometimes for long.
BARE_LOOPS = 10


def writer(shape: str = "b", n_images: int = 1000, rate: float = 3000.0) -> float:
    """Compare a writer with a loop that `pwritev`s the same images."""
    with Rig(shape) as rig:
        n_bytes = n_images * rig.config.image_bytes
        rig.fill_ring(n_images)

        def ours() -> float:
            rig.clear(n_bytes)
            return rig.record(n_images, rate).writers

        def bare() -> float:
            rig.clear(n_bytes)
            return rig.bare_loop(n_images)[0]

        return _ratio(ours, bare)


def driver(n_images: int = 20_000, rate: float = 20_000.0) -> float:
    """Compare a driver and its two writers, without pixels, with a loop that forwards the same messages."""
    with Rig("none", 2) as rig:
        rig.fill_ring(rig.config.n_slots)
        rig.record(1000, rate)

        def ours() -> float:
            rig.clear(0)
            run = rig.record(n_images, rate)
            return run.driver + run.writers

        message = rig.publisher.metadata.SerializeToString()
        return _ratio(ours, lambda: min(_forward(message, n_images) for _ in range(BARE_LOOPS)))


def stream(shape: str = "c") -> float:
    """Compare a live stream with a loop that sends the same messages."""
    rate = live_stream.RATES_HZ[shape]
    with live_stream.streaming(shape) as measured:
        return _ratio(lambda: measured.forward(rate), lambda: measured.bare(rate), STREAM_ROUNDS)


def _ratio(ours: Callable[[], float], bare: Callable[[], float], rounds: int = ROUNDS) -> float:
    pairs = [(ours(), bare()) for _ in range(rounds)]
    return min(one for one, _ in pairs) / min(other for _, other in pairs)


def _forward(message: bytes, n_images: int) -> float:
    """Return the CPU seconds of receiving, decoding and sending the message of an image."""
    with zmq.Context() as context:
        sender, receiver = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
        sender.bind("inproc://images")
        receiver.connect("inproc://images")
        begin = time.process_time()
        for _ in range(n_images):
            sender.send(message)
            received = receiver.recv()
            ImageMetadata.FromString(received)
            encode_record_image(received, 0)
        used = time.process_time() - begin
        sender.close()
        receiver.close()
    return used


MEASURED: dict[str, Callable[[], float]] = {
    "writer / pwritev": writer,
    "driver and writers / forwarding": driver,
    "live stream / pyzmq": stream,
}


def _least(measure: Callable[[], float], limit: float) -> float:
    found = math.inf
    for _ in range(ATTEMPTS):
        found = min(found, round(measure(), 3))
        if found <= limit:
            break
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and compare or keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--keep", action="store_true", help="write the new ratios to ratios.json")
    args = parser.parse_args(argv)
    exit_at_signals()
    kept: dict[str, float] = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {}
    found: dict[str, float] = {}
    for name, measure in MEASURED.items():
        if args.keep:
            found[name] = round(statistics.median(measure() for _ in range(KEEP_OF)), 3)
        else:
            found[name] = _least(measure, LIMIT * kept.get(name, math.inf))
        print(f"{name:<32} {found[name]:6.2f}, kept: {kept.get(name, 'none')}", flush=True)
    if args.keep:
        KEPT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        return 0
    grown = [name for name, ratio in found.items() if ratio > LIMIT * kept.get(name, ratio)]
    for name in grown:
        print(f"{name}: expected at most {LIMIT * kept[name]:.2f}, got {found[name]:.2f}")
    return 1 if grown else 0


if __name__ == "__main__":
    sys.exit(main())
