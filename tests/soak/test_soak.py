"""A short `make soak`, and a check that it detects growth."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.tools.soak import Growth, Sample, Soak


@pytest.mark.slow
def test_fifteen_runs_are_accounted_for_and_leak_no_thread_descriptor_or_segment(
    tmp_path: Path,
) -> None:
    with Soak(tmp_path, seed=3) as soak:
        for _ in range(15):
            soak.run(restart=soak.n_runs == 7)
    assert soak.complaints() == []
    assert soak.n_runs == 15
    assert soak.n_images > 0
    assert soak.n_refused > 0
    assert soak.n_clients > 0
    assert soak.n_restarts == 1
    assert len(soak.table().splitlines()) == 2 + 5
    assert list(tmp_path.iterdir()) == []


def test_resources_that_grow_are_named() -> None:
    samples = [Sample(memory=30_000 + 100 * run, descriptors=20 + run // 50, threads=4) for run in range(100)]
    growth = Growth("std_det_writer 0", samples)
    assert growth.complaints() == [
        "std_det_writer 0: 39450 KiB of memory at the end, 31450 at the beginning",
        "std_det_writer 0: 21 file descriptors at the end, 20 at the beginning",
    ]
    assert round(growth.memory_per_run()) == 100
    assert Growth("flat", samples[:1] * 100).complaints() == []
