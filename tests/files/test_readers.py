"""Programs of the field, in an environment of their own, read what this package writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.data.nexus_metadata import STILLS, metadata
from support.data.raw_files import RunSpec, pixels, stream, write_run
from support.peers.readers import read_by_nxtomo, run_readers_python

from stddaq.files.nxtomo import ImageKey, TomographyRun, create_nxtomo_file
from stddaq.files.run import read_run

pytestmark = pytest.mark.external

EXAMPLES = Path(__file__).parents[2] / "examples"
KEYS = np.repeat([ImageKey.dark, ImageKey.flat, ImageKey.projection], [5, 7, 30])
SHAPE = (6, 8)

# Kills one of two workers while they compute, and writes the result.
KILLED_WORKER = """
import os, signal, sys, time
import numpy as np
from distributed import Client, LocalCluster
from process_run import corrected_mean
from stddaq import open_run

if __name__ == "__main__":
    run, output = sys.argv[1:]
    mean = corrected_mean(open_run(run), 20, 20, images_per_block=1)
    cluster = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
    with cluster, Client(cluster) as client:
        before = client.run(os.getpid)
        future = client.compute(mean)
        end = time.monotonic() + 60
        while not all(client.processing().values()):
            assert time.monotonic() < end and not future.done()
        killed = next(iter(before.values()))
        os.kill(killed, signal.SIGKILL)
        np.save(output, future.result(timeout=100))
        print(killed in client.run(os.getpid).values())
"""

# Each process of MPI sums its part of the run.
MPI_PROGRAM = """
import sys
import numpy as np
from mpi4py import MPI
from stddaq import open_run

run, output = sys.argv[1:]
processes = MPI.COMM_WORLD
part = open_run(run).partition(processes.rank, processes.size)
total = processes.reduce(part.images[:].sum(axis=0, dtype=float))
shares = processes.gather(len(part.images))
if processes.rank == 0:
    np.save(output, total)
    print(*shares)
"""


def test_nxtomo_reads_every_image_and_value(tmp_path: Path):
    images = stream(range(100, 142))
    raw = write_run(tmp_path, images, RunSpec(n_writers=3, shape=SHAPE))
    angles = np.linspace(0, 180, len(images), endpoint=False)
    made = create_nxtomo_file(
        tmp_path / "file_tomo.h5", [TomographyRun(read_run(raw), KEYS, angles)], metadata(STILLS)
    )
    found, shown = read_by_nxtomo(made.path, tmp_path)
    assert found["entries"] == ["/entry0000", "/entry1/tomo_entry"]
    assert found["keys"] == KEYS.tolist()
    assert found["angles"] == pytest.approx(angles)
    assert found["energy"] == pytest.approx(12.4)
    assert found["urls"] == len(images)
    np.testing.assert_array_equal(shown, pixels(images, SHAPE))


@pytest.mark.timeout(200)
def test_a_computation_survives_a_killed_worker(tmp_path: Path):
    images = stream(range(400))
    write_run(tmp_path, images, RunSpec(n_writers=3, shape=SHAPE))
    program, result = tmp_path / "program.py", tmp_path / "mean.npy"
    program.write_text(f"import sys\nsys.path.insert(0, {str(EXAMPLES)!r})\n{KILLED_WORKER}")
    is_alive = run_readers_python(program, tmp_path, result, directory=tmp_path, timeout=180)
    assert is_alive.split() == ["False"]
    stored = pixels(images, SHAPE).astype(float)
    dark, flat = stored[:20].mean(axis=0), stored[20:40].mean(axis=0)
    expected = ((stored[40:] - dark) / np.maximum(flat - dark, 1)).mean(axis=0)
    np.testing.assert_allclose(np.load(result), expected)


def test_processes_of_mpi_share_a_run(tmp_path: Path):
    images = stream(range(50))
    write_run(tmp_path, images, RunSpec(n_writers=3, shape=SHAPE))
    program, result = tmp_path / "program.py", tmp_path / "sum.npy"
    program.write_text(MPI_PROGRAM)
    shares = run_readers_python(program, tmp_path, result, directory=tmp_path, timeout=100, n_mpi_processes=3)
    assert sorted(map(int, shares.split())) == [16, 17, 17]
    np.testing.assert_array_equal(np.load(result), pixels(images, SHAPE).sum(axis=0, dtype=float))
