"""CPU of the chain from the source to the files, with and without checksums of the images."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import numpy as np
from rig import MEBIBYTE, Rig, paced, size_of
from tables import Table, spread

# About a quarter of the highest rate of one writer, as in a source that is not at its limit.
RATES_HZ = {"a": 60.0, "d": 1000.0}
RUN_BYTES = 500 * MEBIBYTE
# The images that the source copies in turn do not fit into the cache.
SOURCE_BYTES = 128 * MEBIBYTE
ROUNDS = 9


@dataclass(slots=True)
class _Chain(Rig):
    """Services, and a source that copies each image into its slot. `source_s`: CPU of its last run."""

    source_s: float = 0.0
    images: np.ndarray = field(default_factory=lambda: np.empty(0))

    def announce(self, n_images: int, rate: float, first_id: int = 0) -> None:
        begin = time.thread_time()
        for i in paced(n_images, rate):
            self.publisher.publish(first_id + i, self.images[i % len(self.images)])
        self.source_s = time.thread_time() - begin


def chain(rounds: int = ROUNDS) -> Table:
    """Measure source, driver and writer together; the runs with and without checksums alternate."""
    table = Table(
        "checksums",
        "CPU of checksums",
        "Source, driver and one writer together, files in memory, `image_checksums` off and on in turn: "
        f"median of {rounds} pairs of runs of {RUN_BYTES // MEBIBYTE} MiB, and median (min-max) of their "
        "ratios. The source copies images that are not in the cache. Target: 5 % more.",
        ["shape", "rate Hz", "off us/image", "on us/image", "on / off", "source: off", "source: on"],
    )
    for shape, rate in RATES_HZ.items():
        with _chains(shape) as (off, on):
            n_images = RUN_BYTES // off.config.image_bytes
            pairs = [(_record(off, n_images, rate), _record(on, n_images, rate)) for _ in range(rounds + 1)]
        used = np.array(pairs[1:]) / n_images * 1e6
        table.add(
            size_of(shape),
            rate,
            *(float(np.median(used[:, i, 0])) for i in range(2)),
            spread((used[:, 1, 0] / used[:, 0, 0]).tolist()),
            *(statistics.median(used[:, i, 1].tolist()) for i in range(2)),
        )
    return table


@contextmanager
def _chains(shape: str) -> Iterator[list[_Chain]]:
    with ExitStack() as running:
        chains = [
            running.enter_context(_Chain(shape, fields={"image_checksums": has_checksums}))
            for has_checksums in (False, True)
        ]
        config = chains[0].config
        n_images = max(2, SOURCE_BYTES // config.image_bytes)
        images = np.random.default_rng(1).integers(0, 4096, (n_images, *config.image_shape), config.dtype)
        for one in chains:
            one.images = images
            one.fill_ring(config.n_slots)
        yield chains


def _record(one: _Chain, n_images: int, rate: float) -> tuple[float, float]:
    """Return the CPU seconds of all services, and of the source alone."""
    one.clear(n_images * one.config.image_bytes)
    run = one.record(n_images, rate)
    if not run.is_complete:
        raise SystemExit(f"the machine does not keep up with {rate:g} Hz of {one.shape}: {run.account}")
    return run.driver + run.writers + one.source_s, one.source_s
