"""dranspose, in an environment of its own, processes a run while it is recorded."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.peers.redis_server import RedisServer
from support.processes.deployment import Service, wait_until
from support.processes.dranspose_services import Dranspose
from support.processes.live_streams import LiveStreamService
from support.processes.recording import Rig, images_of, pixels_of
from support.processes.run_streams import start_run_stream

from stddaq import open_run

# Seven processes that import much.
pytestmark = [pytest.mark.external, pytest.mark.timeout(400)]

N_IMAGES = 60


@pytest.fixture
def stream(rig: Rig) -> LiveStreamService:
    """Return the stream of the rig's runs."""
    return start_run_stream(rig)


@pytest.fixture
def dranspose(stream: LiveStreamService, redis: RedisServer) -> Iterator[Dranspose]:
    """Return dranspose with two workers, which pulls from the stream."""
    with Dranspose(redis, stream.address) as services:
        yield services


def start_example(rig: Rig, stream: LiveStreamService, dranspose: Dranspose, output: Path) -> Service:
    """Start the example. Return it when it has started a run of which no image can be missed."""
    n_lines = len(stream.process.stdout)
    example = dranspose.start_example(rig, output, N_IMAGES)
    example.wait_for_line("waiting for images", 90)
    stream.process.wait_for_line(" connected", start=n_lines)
    rig.wait_for_subscription()
    return example


def test_mean_of_a_run_while_it_is_recorded_is_that_of_the_file(
    rig: Rig, stream: LiveStreamService, dranspose: Dranspose, tmp_path: Path
) -> None:
    for output in (tmp_path / "flat.npy", tmp_path / "again.npy"):
        example = start_example(rig, stream, dranspose, output)
        rig.publish(images_of(range(5, 5 + N_IMAGES // 2)))
        # Images are processed before the run ends; the header is an event, too.
        half = 1 + N_IMAGES // 2
        wait_until(lambda n=half: dranspose.ask("progress")["completed_events"] >= n, 90, period=0.1)
        rig.publish(images_of(range(5 + N_IMAGES // 2, 5 + N_IMAGES)))
        assert example.wait(120) == 0, example.output
        assert example.stdout[-1] == f"{output}: mean of {N_IMAGES} of {N_IMAGES} images"
        with open_run(rig.path(f"{output.stem}Master.h5")) as run:
            total = run.images[:].sum(axis=0, dtype=np.uint64)
        np.testing.assert_array_equal(np.load(output), total / N_IMAGES)


def test_images_of_a_killed_worker_are_listed_as_not_processed(
    rig: Rig, stream: LiveStreamService, redis: RedisServer, tmp_path: Path
) -> None:
    output, path = tmp_path / "flat.npy", tmp_path / "held"
    with Dranspose(redis, stream.address, path) as dranspose:
        example = start_example(rig, stream, dranspose, output)
        rig.publish(images_of(range(N_IMAGES // 2)))
        wait_until(path.exists, 90, "an image that a worker holds", period=0.1)
        held = json.loads(path.read_text())
        (worker,) = (worker for worker in dranspose.workers if worker.pid == held["pid"])
        worker.kill()
        rig.publish(images_of(range(N_IMAGES // 2, N_IMAGES)))
        assert example.wait(150) == 1, example.output
    match = re.fullmatch(r"not processed: (.*)", example.stdout[-1])
    missing = [i for first, last in spans(match[1]) for i in range(first, last + 1)] if match else []
    # After the image that it held, dranspose had assigned a few more to it, and none before.
    assert min(missing, default=None) == held["row"]
    assert len(missing) <= 10
    processed = sorted(set(range(N_IMAGES)) - set(missing))
    total = np.sum([pixels_of(i) for i in processed], axis=0, dtype=np.uint64)
    np.testing.assert_array_equal(np.load(output), total / len(processed))


def spans(text: str) -> list[tuple[int, int]]:
    """Return the ranges (first, last) of ids in a text as `3, 5-8`."""
    ends = [part.split("-") for part in text.split(", ")]
    return [(int(end[0]), int(end[-1])) for end in ends]
