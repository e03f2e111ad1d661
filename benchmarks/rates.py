"""The highest sustained rate of a driver and its writers, compared with a bare loop."""

from __future__ import annotations

import statistics
from pathlib import Path

from rig import MEBIBYTE, Rig, size_of
from tables import Table, spread

# Several turns of the ring buffer. Larger runs on a virtual machine measure the memory of its host.
RUN_BYTES = 800 * MEBIBYTE
# Rates are tried between these fractions of the bare loop's: number of rates, and repetitions of each.
LOWEST, HIGHEST, STEPS, ATTEMPTS = 0.3, 1.6, 6, 3


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
        f"Median (min-max) of {rounds} runs of two seconds, announced at the given rate if the source "
        "reaches it on the same cores; the rate counts until the last image is readable. The ring buffer "
        "holds all images of a run, so that none is overwritten. Target: 100 kHz with 2 writers.",
        ["offered Hz", "writers", "sustained kHz", "driver us/image", "writers us/image", "complete runs"],
    )
    for rate in (20_000.0, 40_000.0, 100_000.0):
        with Rig("none", 2) as rig:
            n_images = int(2 * rate)
            rig.fill_ring(min(n_images, rig.config.n_slots))
            rig.record(1000, rate)
            runs = []
            for _ in range(rounds):
                rig.clear(n_images * rig.config.image_bytes)
                runs.append(rig.record(n_images, rate))
        table.add(
            rate,
            2,
            spread([n_images / run.elapsed_s / 1e3 for run in runs]),
            statistics.median(run.driver for run in runs) / n_images * 1e6,
            statistics.median(run.writers for run in runs) / n_images * 1e6,
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
