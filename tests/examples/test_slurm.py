"""The examples for several computers, by a real SLURM of one node."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.data.raw_files import RunSpec, pixels, stream, write_run
from support.peers.readers import run_readers_python
from support.peers.slurm import Slurm

pytestmark = [pytest.mark.external, pytest.mark.timeout(240)]

EXAMPLES = Path(__file__).parents[2] / "examples"
SHAPE = (6, 8)

# The workers are jobs. One job is killed while both compute.
KILLED_JOB = """
import os, subprocess, sys, time
import numpy as np
from dask_jobqueue import SLURMCluster
from distributed import Client
from process_run import corrected_mean
from stddaq import open_run

run, output = sys.argv[1:]
directory = os.path.dirname(output)
mean = corrected_mean(open_run(run), 20, 20, images_per_block=1)
cluster = SLURMCluster(
    cores=1, processes=1, memory="1GiB", walltime="00:10:00", interface="lo",
    local_directory=directory, log_directory=directory,
    worker_extra_args=["--no-dashboard"], scheduler_options={"dashboard_address": None},
)
with cluster, Client(cluster) as client:
    cluster.scale(jobs=2)
    client.wait_for_workers(2, timeout=100)
    jobs = client.run(os.getenv, "SLURM_JOB_ID")
    future = client.compute(mean)
    end = time.monotonic() + 60
    while not all(client.processing().values()):
        assert time.monotonic() < end and not future.done()
    killed = next(iter(jobs.values()))
    subprocess.run(["scancel", "--full", "--signal=KILL", killed], check=True)
    np.save(output, future.result(timeout=100))
    print(len(set(jobs.values())), killed in client.run(os.getenv, "SLURM_JOB_ID").values())
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    with Slurm(tmp_path_factory.mktemp("slurm")) as slurm:
        yield slurm.start()


def test_a_job_array_sums_a_run(tmp_path: Path, slurm: Slurm, monkeypatch: pytest.MonkeyPatch):
    images = stream(range(21))
    run = tmp_path / "run"
    run.mkdir()
    write_run(run, images, RunSpec(n_writers=2, shape=SHAPE))
    # The script starts `python`.
    monkeypatch.setitem(slurm.environment, "PATH", f"{sys.prefix}/bin:{slurm.environment['PATH']}")
    script = EXAMPLES / "process_run.sbatch"
    job = slurm.submit("--array=0-3", script, run, "sums", directory=tmp_path)
    refused = slurm.submit("--array=0-1", script, tmp_path / "absent", "none", directory=tmp_path)
    assert slurm.wait(job, timeout=100) == ["COMPLETED"] * 4
    parts = [dict(np.load(tmp_path / f"sums/{task}.npz")) for task in range(4)]
    assert sorted(int(part["n"]) for part in parts) == [5, 5, 5, 6]
    stored = pixels(images, SHAPE).astype(float)
    np.testing.assert_array_equal(sum(part["total"] for part in parts), stored.sum(axis=0))
    assert slurm.wait(refused, timeout=100) == ["FAILED"] * 2


def test_jobs_are_workers_of_dask_and_one_may_be_killed(tmp_path: Path, slurm: Slurm):
    images = stream(range(400))
    write_run(tmp_path, images, RunSpec(n_writers=3, shape=SHAPE))
    program, result = tmp_path / "program.py", tmp_path / "mean.npy"
    program.write_text(f"import sys\nsys.path.insert(0, {str(EXAMPLES)!r})\n{KILLED_JOB}")
    found = run_readers_python(
        program, tmp_path, result, directory=tmp_path, timeout=200, environment=slurm.environment
    )
    assert found.split() == ["2", "False"]
    stored = pixels(images, SHAPE).astype(float)
    dark, flat = stored[:20].mean(axis=0), stored[20:40].mean(axis=0)
    expected = ((stored[40:] - dark) / np.maximum(flat - dark, 1)).mean(axis=0)
    np.testing.assert_allclose(np.load(result), expected)
