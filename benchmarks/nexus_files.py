"""The time that an NXmx file adds to the end of a run."""

from __future__ import annotations

import functools
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from h5py import h5a, h5d, h5f, h5g, h5p, h5s, h5t  # pyright: ignore[reportAttributeAccessIssue]
from recorded import write_raw_files
from rig import MEMORY
from tables import Table, spread

from stddaq.daemon.isolation import run_in_fork, run_in_process
from stddaq.files.file_format import new_file_access
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
        "differences. Bare is a loop that writes what is in the NXmx file, which it knows, by the low-level "
        "interface of h5py, also after the master file. By h5py is such a loop of h5py's own calls, in a "
        "process that has done it before. With gaps, the file has a mask of 4 bytes per pixel. Target "
        "without gaps: 20 ms, set where a prototype by h5py took 17 ms.",
        [
            "pixels",
            "images",
            "writers",
            "master file ms",
            "both files ms",
            "NXmx file ms",
            "bare ms",
            "by h5py ms",
        ],
    )
    for n_images, n_writers, shape, has_gaps in RUNS:
        with tempfile.TemporaryDirectory(dir=MEMORY) as name:
            create = _request(Path(name), n_images, n_writers, shape, has_gaps)
            n_pairs = min(rounds, max(5, 2_000_000 // n_images))
            measure = functools.partial(_pairs, create.SerializeToString(), n_pairs)
            pairs, bare, by_h5py = run_in_process(measure, TIMEOUT_S, name)
        table.add(
            f"{shape[0]}x{shape[1]}" + (", with gaps" if has_gaps else ""),
            n_images,
            n_writers,
            *(1e3 * statistics.median(times) for times in zip(*pairs, strict=True)),
            spread([1e3 * (both - master) for master, both in pairs]),
            1e3 * statistics.median(bare),
            1e3 * statistics.median(by_h5py),
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


def _pairs(serialized: bytes, n: int) -> tuple[list[tuple[float, float]], list[float], list[float]]:
    """Return the seconds for the master file and for both files, those of the bare loop, and by h5py.

    For a process that is as small as a writer, because a fork takes longer in a larger one.
    """
    create, without = (pb.CreateMasterFile.FromString(serialized) for _ in range(2))
    without.nxmx = ""
    create_as_requested(create)
    members = _members(Path(create.nxmx))
    copy, bare, by_h5py = Path(create.nxmx + ".bare"), list[float](), list[float]()
    for path in (create.path, create.nxmx):
        Path(path).unlink()
    pairs = []
    for _ in range(n + 1):
        pairs.append((_time(without), _time(create)))
        bare.append(run_in_fork(functools.partial(_bare, without, members, copy), TIMEOUT_S, "bare loop"))
        copy.unlink()
        Path(create.path).unlink()
        by_h5py.append(_write_by_h5py(members, copy))
        copy.unlink()
    return pairs[1:], bare[1:], by_h5py[1:]


@dataclass(frozen=True, slots=True)
class _Value:
    """A dataset or an attribute. `content`: as h5py writes it; None of a virtual dataset."""

    name: bytes
    dtype: np.dtype
    space: h5s.SpaceID
    content: np.ndarray | None
    creation: h5p.PropDCID | None = None


# Name, and value unless it is a group; attributes.
_Member = tuple[bytes, _Value | None, list[_Value]]


def _members(path: Path) -> list[_Member]:
    """Return all groups and datasets of a file, a group before its members."""
    found: list[_Member] = []

    def add(name: str, member: h5py.HLObject) -> None:
        attributes = [
            _Value(key.encode(), one.dtype, one.get_space(), np.array(member.attrs[key], one.dtype))
            for key in member.attrs
            for one in [member.attrs.get_id(key)]
        ]
        value = None
        if isinstance(member, h5py.Dataset):
            content = None if member.is_virtual else np.array(member[()], member.dtype)
            creation = member.id.get_create_plist() if member.is_virtual else None
            value = _Value(name.encode(), member.dtype, member.id.get_space(), content, creation)
        found.append((name.encode(), value, attributes))

    with h5py.File(path) as file:
        file.visititems(add)
    return found


def _bare(without: pb.CreateMasterFile, members: list[_Member], path: Path) -> float:
    """Return the seconds of the bare loop after the master file, which has touched the memory of the fork."""
    create_as_requested(without)
    return _write(members, path)


def _write(members: list[_Member], path: Path) -> float:
    """Write the members to a new file. Return the seconds that it takes."""
    begin = time.perf_counter()
    file = h5f.create(bytes(path), h5f.ACC_EXCL, fapl=new_file_access())
    for name, value, attributes in members:
        if value is None:
            of = h5g.create(file, name)
        else:
            stored = h5t.py_create(value.dtype, logical=True)
            of = h5d.create(file, name, stored, value.space, value.creation)
            if value.content is not None:
                of.write(h5s.ALL, h5s.ALL, value.content)
        for one in attributes:
            stored = h5t.py_create(one.dtype, logical=True)
            h5a.create(of, one.name, stored, one.space).write(one.content)
    file.close()
    return time.perf_counter() - begin


def _write_by_h5py(members: list[_Member], path: Path) -> float:
    """Write the members by h5py's own calls. Return the seconds that it takes."""
    begin = time.perf_counter()
    with h5py.File(path, "x", libver=("v110", "v110")) as file:
        for name, value, attributes in members:
            if value is None:
                of = file.create_group(name)
            elif value.content is None:
                stored = h5t.py_create(value.dtype, logical=True)
                of = h5py.Dataset(h5d.create(file.id, name, stored, value.space, value.creation))
            else:
                of = file.create_dataset(name, data=value.content, dtype=value.dtype)
            for one in attributes:
                of.attrs.create(one.name.decode(), one.content, dtype=one.dtype)
    return time.perf_counter() - begin


def _time(create: pb.CreateMasterFile) -> float:
    begin = time.perf_counter()
    run_in_fork(functools.partial(create_as_requested, create), MASTER_FILE_TIMEOUT_S, create.path)
    elapsed = time.perf_counter() - begin
    for path in filter(None, (create.path, create.nxmx)):
        Path(path).unlink()  # Fails if the file was not made, whose reason is in the log.
    return elapsed
