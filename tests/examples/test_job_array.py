"""The job array of SLURM, with a stand-in for `srun` that only starts the program."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.data.raw_files import RunSpec, pixels, stream, write_run

SCRIPT = Path(__file__).parents[2] / "examples/process_run.sbatch"
SHAPE = (4, 6)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Return the environment of a task, with `srun` and `python`."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "srun").write_text('#!/bin/sh\nexec "$@"\n')
    (programs / "srun").chmod(0o755)
    (programs / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (programs / "python").chmod(0o755)
    return os.environ | {"PATH": f"{programs}:{os.environ['PATH']}"}


def test_tasks_of_a_job_array_sum_their_parts_of_a_run(tmp_path: Path, environment: dict[str, str]):
    images = stream(range(21))
    run = tmp_path / "run"
    run.mkdir()
    write_run(run, images, RunSpec(n_writers=2, shape=SHAPE))
    for task in range(2):
        job = {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_TASK_COUNT": "2"}
        subprocess.run(
            ["bash", SCRIPT, run, "sums"], env=environment | job, cwd=tmp_path, check=True, timeout=60
        )
    parts = [dict(np.load(tmp_path / f"sums/{task}.npz")) for task in range(2)]
    assert sorted(int(part["n"]) for part in parts) == [10, 11]
    stored = pixels(images, SHAPE).astype(float)
    np.testing.assert_array_equal(sum(part["total"] for part in parts), stored.sum(axis=0))

    # The command in its comment.
    lines = [line.removeprefix("#").strip() for line in SCRIPT.read_text().splitlines()]
    begin = next(i for i, line in enumerate(lines) if line.startswith("python -c"))
    command = "\n".join(lines[begin : lines.index("", begin)])
    subprocess.run(["bash", "-c", command], env=environment, cwd=tmp_path, check=True, timeout=60)
    np.testing.assert_allclose(np.load(tmp_path / "mean.npy"), stored.mean(axis=0))


def test_a_task_that_fails_fails_its_job(tmp_path: Path, environment: dict[str, str]):
    job = {"SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_TASK_COUNT": "2"}
    ended = subprocess.run(
        ["bash", SCRIPT, tmp_path / "absent", "sums"],
        env=environment | job,
        cwd=tmp_path,
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 1
    assert "absent" in ended.stderr
