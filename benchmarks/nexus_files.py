"""The time that an NXmx file adds to the end of a run."""

from __future__ import annotations

import functools
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from recorded import write_raw_files
from rig import MEMORY
from tables import Table, spread

from stddaq.daemon.isolation import run_in_fork, run_in_process
from stddaq.files.limits import MASTER_FILE_TIMEOUT_S
from stddaq.wire.std_daq import writer_action_pb2 as pb
from stddaq.writing.master_request import create_as_requested

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support.data.nexus_metadata import SCAN

ROUNDS = 15
TIMEOUT_S = 300.0
# Images, writers, height and width, whether the detector has gaps between its modules.
RUNS = (
    (1, 1, (16, 16), False),
    (1000, 1, (16, 16), False),
    (1000, 4, (16, 16), False),
    (100_000, 4, (16, 16), False),
    (1_000_000, 4, (16, 16), False),
    (4, 1, (3264, 3106), True),
)


def nxmx(rounds: int = ROUNDS) -> Table:
    """Measure what a writer does at the end of a run, with and without an NXmx file."""
    table = Table(
        "nxmx",
        "Creating the NXmx file",
        "What a writer does between the last image and `file_saved`, in a process of its own, with and "
        f"without an NXmx file, in turn: median of {rounds} pairs, and median (min-max) of their "
        "differences. With gaps, the file has a mask of 4 bytes per pixel. Target without gaps: 20 ms.",
        ["pixels", "images", "writers", "master file ms", "both files ms", "NXmx file ms"],
    )
    for n_images, n_writers, shape, has_gaps in RUNS:
        with tempfile.TemporaryDirectory(dir=MEMORY) as name:
            create = _request(Path(name), n_images, n_writers, shape, has_gaps)
            n_pairs = min(rounds, max(5, 2_000_000 // n_images))
            measure = functools.partial(_pairs, create.SerializeToString(), n_pairs)
            pairs = run_in_process(measure, TIMEOUT_S, name)
        table.add(
            f"{shape[0]}x{shape[1]}" + (", with gaps" if has_gaps else ""),
            n_images,
            n_writers,
            *(1e3 * statistics.median(times) for times in zip(*pairs, strict=True)),
            spread([1e3 * (both - master) for master, both in pairs]),
        )
    return table


def _request(
    directory: Path, n_images: int, n_writers: int, shape: tuple[int, int], has_gaps: bool
) -> pb.CreateMasterFile:
    raw_files = write_raw_files(directory, range(n_images), shape, n_writers)
    gaps = {"gaps": [[1030, 0, 1039, shape[0] - 1]]} if has_gaps else {}
    metadata = SCAN | {"detector": SCAN["detector"] | gaps}
    account = {
        "outcome": "file_saved",
        "n_image": n_images,
        "run_id": "0" * 32,
        "started_at": "2026-11-27T01:00:00+00:00",
        "finished_at": "2026-11-27T01:00:10+00:00",
    }
    return pb.CreateMasterFile(
        path=str(directory / "fileMaster.h5"),
        raw_files=[str(path) for path in raw_files],
        account=json.dumps(account),
        nexus=json.dumps({"start": metadata}),
        nxmx=str(directory / "file_master.h5"),
    )


def _pairs(serialized: bytes, n: int) -> list[tuple[float, float]]:
    """Return the seconds for the master file, and for both files.

    For a process that is as small as a writer, because a fork takes longer in a larger one.
    """
    create, without = (pb.CreateMasterFile.FromString(serialized) for _ in range(2))
    without.nxmx = ""
    return [(_time(without), _time(create)) for _ in range(n + 1)][1:]


def _time(create: pb.CreateMasterFile) -> float:
    begin = time.perf_counter()
    run_in_fork(functools.partial(create_as_requested, create), MASTER_FILE_TIMEOUT_S, create.path)
    elapsed = time.perf_counter() - begin
    for path in filter(None, (create.path, create.nxmx)):
        Path(path).unlink()  # Fails if the file was not made, whose reason is in the log.
    return elapsed
