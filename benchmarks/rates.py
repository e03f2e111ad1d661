"""The highest sustained rate of a driver and its writers, compared with a bare loop."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path

from rig import MEBIBYTE, Rig, size_of
from tables import Table, spread

# Several turns of the ring buffer. Larger runs on a virtual machine measure the memory of its host.
RUN_BYTES = 800 * MEBIBYTE
# Rates are tried between these fractions of the bare loop's: number of rates, and repetitions of each.
LOWEST, HIGHEST, STEPS, ATTEMPTS = 0.3, 1.6, 6, 3
# Images without pixels are announced in bursts of this length.
BURST_S = 0.001


@dataclass(slots=True)
class _Prepared(Rig):
    """The source has encoded its announcements before the run, so that sending them is all that it does.

    Each slot holds its image, of which the cursor has the number, through all runs.
    """

    messages: list[bytes] = field(default_factory=list)

    def prepare(self, n_images: int) -> None:
        """Put `n_images` into the ring buffer."""
        self.fill_ring(n_images)
        for i in range(n_images):
            self.publisher.begin(i)
            self.publisher.commit(i)
            self.messages.append(self.publisher.metadata.SerializeToString())

    def announce(self, n_images: int, rate: float, first_id: int = 0) -> None:
        send, n_burst = self.publisher.socket.send, max(1, round(rate * BURST_S))
        begin = time.perf_counter()
        for first in range(first_id, first_id + n_images, n_burst):
            for message in self.messages[first : min(first + n_burst, first_id + n_images)]:
                send(message)
            ahead = begin + (first + n_burst - first_id) / rate - time.perf_counter()
            if ahead > 0:
                time.sleep(ahead)


def sustained(name: str, directory: Path, where: str) -> Table:
    """Measure the three shapes with 1 and 2 writers, by bisection."""
    table = Table(
        name,
        f"Highest sustained rate, files {where}",
        f"Bisection over runs of {RUN_BYTES // MEBIBYTE} MiB. A rate is sustained when no image is lost and "
        "all are readable within 10 % + 50 ms of the time that announcing them took; the rate counts "
        "until the last one is readable. Driver, writers, source and measurement share the cores. "
        "Target: 0.9 of the bare loop, with one writer.",
        ["shape", "writers", "bare Hz", "bare GB/s", "sustained Hz", "sustained GB/s", "sustained / bare"],
    )
    for shape in ("a", "b", "c"):
        for n_writers in (1, 2):
            with Rig(shape, n_writers, directory) as rig:
                size = rig.config.image_bytes
                n_images = RUN_BYTES // size
                rig.fill_ring(n_images)
                bare = max(_bare_rate(rig, n_images) for _ in range(ATTEMPTS))
                best = _highest(rig, n_images, bare)
            table.add(
                size_of(shape),
                n_writers,
                bare,
                bare * size / 1e9,
                best,
                best * size / 1e9,
                best / bare,
            )
    return table


def metadata(rounds: int = ATTEMPTS) -> Table:
    """Measure how fast a driver and two writers take images without pixels."""
    table = Table(
        "metadata",
        "Highest rate without pixels (16x16)",
        f"Median (min-max) of {rounds} runs of two seconds, announced at the given rate, in bursts of a "
        "millisecond, if the source reaches it on the same cores; the rate counts until the last image is "
        "readable. The ring buffer holds all images of a run, so that none is overwritten, and the source "
        "only sends announcements that it has encoded before. Target: 100 kHz with 2 writers.",
        [
            "offered Hz",
            "writers",
            "sustained kHz",
            "driver us/image",
            "writers us/image",
            "source us/image",
            "complete runs",
        ],
    )
    for rate in (20_000.0, 40_000.0, 100_000.0):
        with _Prepared("none", 2) as rig:
            n_images = int(2 * rate)
            rig.prepare(n_images)
            rig.record(1000, rate)
            runs, source = [], 0.0
            for _ in range(rounds):
                rig.clear(n_images * rig.config.image_bytes)
                begin = time.process_time()
                runs.append(rig.record(n_images, rate))
                source += time.process_time() - begin
        table.add(
            rate,
            2,
            spread([n_images / run.elapsed_s / 1e3 for run in runs]),
            statistics.median(run.driver for run in runs) / n_images * 1e6,
            statistics.median(run.writers for run in runs) / n_images * 1e6,
            source / rounds / n_images * 1e6,
            f"{sum(run.is_complete for run in runs)} of {rounds}",
        )
    return table


def _bare_rate(rig: Rig, n_images: int) -> float:
    rig.clear(n_images * rig.config.image_bytes)
    return n_images / rig.bare_loop(n_images)[1]


def _highest(rig: Rig, n_images: int, bare: float) -> float:
    low, high, best = LOWEST * bare, HIGHEST * bare, 0.0
    for _ in range(STEPS):
        rate = (low * high) ** 0.5
        achieved = max(_sustains(rig, n_images, rate) for _ in range(ATTEMPTS))
        best = max(best, achieved)
        low, high = (rate, high) if achieved else (low, rate)
    return best


def _sustains(rig: Rig, n_images: int, rate: float) -> float:
    """Return the rate at which images announced at `rate` became readable; 0 when not sustained."""
    rig.clear(n_images * rig.config.image_bytes)
    run = rig.record(n_images, rate)
    keeps_up = run.is_complete and run.elapsed_s <= 1.1 * n_images / rate + 0.05
    return n_images / run.elapsed_s if keeps_up else 0.0
