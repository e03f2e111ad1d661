"""A short `make chaos` with fixed seeds, and a check that the harness detects wrong images."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from support.chaos.truth import Truth
from support.peers.chaos_source import DAMAGED, GOOD, RECORD, pixels_of, publication_of
from support.processes.deployment import SHM_DIRECTORY, Deployment, Service, wait_until
from support.tools.chaos import run_episode

from stddaq.config import DetectorConfig
from stddaq.dataplane.image_publisher import ImagePublisher

SHAPE = (8, 16)


@pytest.mark.slow
@pytest.mark.parametrize("seed", ["1:0", "1:1", "1:7"])
def test_no_harm_makes_a_wrong_image_good_and_the_next_run_is_perfect(seed: str) -> None:
    episode = run_episode(seed, rounds=2)
    assert episode.findings == [], "\n\n".join(map(str, episode.findings))
    assert episode.n_runs == 4
    assert episode.n_good >= 200


def test_wrong_pixels_ids_and_states_are_detected(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(RECORD.pack(1, 100, GOOD) + RECORD.pack(2, 101, DAMAGED))
    truth = Truth(log)
    truth.read()
    good = pixels_of(1, 100, SHAPE)
    assert publication_of(good) == (1, 100)
    assert truth.fault(100, publication_of(good)) is None
    assert truth.fault(101, publication_of(good)) == (
        "image 101: good with the pixels of image 100 (publication 1)"
    )
    assert truth.fault(101, publication_of(pixels_of(2, 101, SHAPE))) == (
        "image 101: good, published as damaged"
    )
    assert truth.fault(102, publication_of(pixels_of(3, 102, SHAPE))) == (
        "image 102: publication 3 was never made"
    )
    mixed = good.copy()
    mixed[-1] = pixels_of(2, 100, SHAPE)[-1]
    for pixels in (mixed, np.zeros_like(good), np.full_like(good, 65535)):
        assert truth.fault(100, publication_of(pixels)) == "image 100: good with pixels of no image"


def test_a_ring_whose_cursor_was_removed_is_removed_at_the_end(deployment: Deployment) -> None:
    with ImagePublisher(DetectorConfig.parse(deployment.config)):
        writer = deployment.start("std_det_writer", 0)
        (SHM_DIRECTORY / f"{deployment.detector_name}-image-cursor").unlink()
        later = deployment.start("std_det_writer", 1)
        assert writer.end() == 0
    assert later.end() == 0
    segments = deployment.segments()
    deployment.remove_leftovers()
    assert segments == []


def processes_with(text: str) -> list[str]:
    """Return the commands of all processes in which `text` occurs."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            found += [command] if text in command else []
    return found


@pytest.mark.slow
def test_a_terminated_harness_ends_its_services(tmp_path: Path) -> None:
    env = os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    harness = Service([sys.executable, "-m", "support.tools.chaos", "--runs", "100"], env)
    try:
        # It imports everything first.
        (config_path,) = wait_until(lambda: list(tmp_path.glob("*/t*.json")), 60, "the configuration")
        # A look at all processes takes milliseconds, which the services need.
        wait_until(
            lambda: len(processes_with(str(config_path))) >= 3 or harness.returncode is not None,
            120,
            "the services",
            period=0.5,
        )
        assert harness.returncode is None, harness.output
    finally:
        code = harness.end(timeout=60)
    assert code == 128 + signal.SIGTERM
    assert processes_with(str(config_path)) == []
    assert list(tmp_path.iterdir()) == []
    assert list(SHM_DIRECTORY.glob(f"{config_path.stem}*")) == []
