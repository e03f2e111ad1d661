"""The rows of a raw file, also of one that another process is writing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from h5py import h5d  # pyright: ignore[reportAttributeAccessIssue]
from support.data.raw_files import FILE_FORMAT

from stddaq.files import row_tables
from stddaq.files.raw_file import CHECKSUM_DTYPE, METADATA_DTYPE
from stddaq.files.raw_rows import read_raw_file

# Writes two more images for each line of its standard input, as a writer does: pixels first, then rows.
WRITER = """
import sys
from pathlib import Path
import numpy as np
from stddaq.files.raw_file import RawFile, RawLayout
layout = RawLayout("det", (4, 6), np.dtype("<u2"), 64, 0)
file = RawFile.create(Path(sys.argv[1]), layout, {"writer": 0})
image_id = 0
for line in sys.stdin:
    for _ in range(2):
        file.put([memoryview(np.full((4, 6), image_id, "<u2")).cast("B")])
        file.declare([(image_id, 1)])
        image_id += 1
    file.flush()
    print(image_id, flush=True)
"""


def test_rows_are_never_ahead_of_the_images_of_a_growing_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file0.h5"
    command = [sys.executable, "-c", WRITER, str(path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, bufsize=1) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None

        def grow() -> None:
            assert writer.stdin is not None
            assert writer.stdout is not None
            writer.stdin.write("grow\n")
            assert writer.stdout.readline()

        def grow_before(function: Callable[..., object]) -> Callable[..., object]:
            def growing(*arguments: object) -> object:
                grow()
                return function(*arguments)

            return growing

        grow()
        monkeypatch.setattr(h5d, "open", grow_before(h5d.open))
        monkeypatch.setattr(h5py.Group, "__getitem__", grow_before(h5py.Group.__getitem__))
        rows = read_raw_file(path, allow_unclosed=True)
        monkeypatch.undo()
        writer.stdin.close()
        assert writer.wait(60) == 0
    assert rows.image_ids.tolist() == list(range(rows.n_rows))
    assert 2 <= rows.n_rows <= rows.n_stored
    assert read_raw_file(path, allow_unclosed=True).n_rows > rows.n_rows


def write_rows(path: Path, ids: list[int], status: list[int], dtype: np.dtype, **options: object) -> None:
    """Write a raw file with these rows, and one pixel for each image."""
    rows = np.zeros(len(ids), dtype)
    rows["image_id"], rows["status"] = ids, status
    with h5py.File(path, "w", libver=FILE_FORMAT) as file:
        group = file.create_group("det")
        group.attrs.update({"writer": 0, "run_id": "run-1"})
        group.create_dataset("data", (len(ids), 1, 1), "<u2")
        group.create_dataset("metadata", data=rows, **options)


EVEN, GOOD = list(range(3, 43, 4)), [1] * 10


@pytest.mark.parametrize(
    ("ids", "status", "id_step"),
    [
        (EVEN, GOOD, 4),
        (EVEN, [*GOOD[:8], 2, 3], 4),
        (EVEN, [2, *GOOD[1:]], 4),
        ([*EVEN[:4], *range(100, 124, 4)], GOOD, 0),
        ([*EVEN[:4], *EVEN[:6]], GOOD, 0),
        ([5] * 10, GOOD, 0),
        (list(range(40, 20, -2)), GOOD, 0),
        ([0, 2**63 + 1, 2**64 - 1], [1, 1, 1], 0),
        ([7], [3], 0),
        ([], [], 0),
    ],
    ids=["even", "bad at the end", "bad first", "gap", "restart", "same", "down", "far", "one", "none"],
)
@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        (METADATA_DTYPE, {"chunks": (4,), "maxshape": (None,)}),
        (METADATA_DTYPE, {"chunks": (3,), "maxshape": (None,), "compression": "gzip"}),
        (METADATA_DTYPE, {}),
        (CHECKSUM_DTYPE, {"chunks": (4,), "maxshape": (None,)}),
    ],
    ids=["chunks", "compressed", "contiguous", "checksums"],
)
def test_rows_that_are_read_in_blocks_are_those_of_the_file(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ids: list[int],
    status: list[int],
    id_step: int,
    dtype: np.dtype,
    options: dict[str, object],
) -> None:
    monkeypatch.setattr(row_tables, "BLOCK_ROWS", 4)
    write_rows(tmp_path / "file0.h5", ids, status, dtype, **options)
    for space in (None, np.empty(20, np.uint64), np.empty(1, np.uint64)):
        rows = read_raw_file(tmp_path / "file0.h5", space=space)
        assert rows.image_ids.tolist() == ids
        assert rows.status.tolist() == status
        assert rows.image_ids.dtype == rows.status.dtype == np.uint64
        assert rows.id_step == id_step
        drops = np.flatnonzero(np.diff(np.array(ids, object)) <= 0)
        assert rows.n_steps_back == len(drops)


def test_links_that_lead_nowhere_do_not_hide_the_images(tmp_path: Path) -> None:
    write_rows(tmp_path / "file0.h5", EVEN, GOOD, METADATA_DTYPE)
    with h5py.File(tmp_path / "file0.h5", "a") as file:
        file["absent"] = h5py.SoftLink("/nothing")
        file["elsewhere"] = h5py.ExternalLink("absent.h5", "/det")
        file["number"] = 1
    rows = read_raw_file(tmp_path / "file0.h5")
    assert (rows.detector_name, rows.origin.run_id, rows.origin.writer) == ("det", "run-1", 0)
    assert rows.image_ids.tolist() == EVEN


@pytest.mark.parametrize(
    ("stored", "read"),
    [
        (np.uint64(2**63 + 5), 2**63 + 5),
        (np.array(3, ">i8"), 3),
        (np.uint8(3), 3),
        (h5py.Empty("i8"), None),
        (1.5, None),
        ([3], None),
    ],
    ids=["large", "big-endian", "short", "null", "float", "list"],
)
def test_numbers_of_other_programs_are_read_as_stored(
    tmp_path: Path, stored: object, read: int | None
) -> None:
    write_rows(tmp_path / "file0.h5", EVEN, GOOD, METADATA_DTYPE)
    with h5py.File(tmp_path / "file0.h5", "a") as file:
        file["det"].attrs["writer"] = stored
    assert read_raw_file(tmp_path / "file0.h5").origin.writer == read


@pytest.mark.parametrize(
    ("stored", "read"),
    [
        ("häuser", "häuser"),
        (np.bytes_("fixed"), "fixed"),
        (np.array("ascii", h5py.string_dtype("ascii")), "ascii"),
        (h5py.Empty(h5py.string_dtype()), None),
        (7, None),
    ],
    ids=["utf-8", "fixed", "ascii", "null", "number"],
)
def test_texts_of_other_programs_are_read_as_stored(tmp_path: Path, stored: object, read: str | None) -> None:
    write_rows(tmp_path / "file0.h5", EVEN, GOOD, METADATA_DTYPE)
    with h5py.File(tmp_path / "file0.h5", "a") as file:
        file["det"].attrs["run_id"] = stored
    assert read_raw_file(tmp_path / "file0.h5").origin.run_id == read
