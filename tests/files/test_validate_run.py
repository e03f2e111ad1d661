"""Every way in which a run can be wrong is one line that names the file, and a sound run has none."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest
from support.data.raw_files import (
    RunSpec,
    bitshuffle,
    blosc2,
    dataset,
    stream,
    write_raw_file,
    write_run,
)

from stddaq.errors import FileLayoutError
from stddaq.files import validate_pixels
from stddaq.files.id_ranges import IdRanges
from stddaq.files.master_file import create_master_file
from stddaq.files.validate_run import validate_run

IDS = [*range(8), 10, *range(12, 40)]
IMAGES = stream(IDS)
ACCOUNT: dict[str, Any] = {
    "outcome": "file_saved",
    "run_id": "run-1",
    "count": len(IDS),
    "n_good": len(IDS),
    "n_skipped": 3,
    "n_dropped": 0,
    "n_failed": 0,
}


def record(directory: Path, spec: RunSpec | None = None, **account: object) -> list[Path]:
    """Write a run with its master file. Return its raw files."""
    spec = spec or RunSpec(n_writers=3, metadata_file=True)
    raw = write_run(directory, IMAGES, spec)
    metadata = directory / "fileMeta.h5" if spec.metadata_file else None
    text = json.dumps(ACCOUNT | account)
    create_master_file(directory / "fileMaster.h5", raw, metadata_file=metadata, account=text)
    return raw


def problems(path: Path, **options: Any) -> list[str]:
    """Return the problems of a run, without its directory."""
    report = validate_run(path, **options)
    assert report.exit_code == (1 if report.problems else 0)
    return [problem.text.replace(f"{path}/", "") for problem in report.problems]


@pytest.mark.parametrize(
    "spec",
    [
        RunSpec(n_writers=3, metadata_file=True),
        RunSpec(n_writers=3, division="arrival", filter=bitshuffle()),
        RunSpec(filter=blosc2(), dtype="<f4"),
        RunSpec(n_writers=1, by_stddaq=False, filter={"compression": "gzip"}),
    ],
)
def test_a_sound_run_has_no_problems(tmp_path: Path, spec: RunSpec) -> None:
    record(tmp_path, spec, run_id="run-1" if spec.by_stddaq else "of the driver")
    shown: list[tuple[str, int, int]] = []
    for path in (tmp_path, tmp_path / "fileMaster.h5"):
        report = validate_run(path, pixels=True, on_progress=lambda *done: shown.append(done))
        assert report.problems == ()
        assert (report.n_images, report.n_good, report.first_id, report.last_id) == (37, 37, 0, 39)
        assert report.skipped == IdRanges(3, ((8, 9), (11, 11)))
        assert shown[-1] == ("reading", 37, 37)
        assert report.lines()[-1] == "no problems"


def test_ids_that_restart_or_came_late_are_no_problem(tmp_path: Path) -> None:
    for name, images, skipped in (
        ("restarted", stream([0, 1, 4], [0, 1, 2]), IdRanges(2, ((2, 3),))),
        ("late", stream([0, 1, 3], [2, 4, 7]), IdRanges(2, ((5, 6),))),
    ):
        (tmp_path / name).mkdir()
        write_run(tmp_path / name, images)
        report = validate_run(tmp_path / name)
        assert (report.problems, report.skipped) == ((), skipped), name


def damage(path: Path, content: bytes) -> None:
    """Replace `content` in a file."""
    found = path.read_bytes()
    assert content in found
    path.write_bytes(found.replace(content, b"\xff" * len(content)))


@pytest.mark.parametrize(
    ("filter", "block_images"),
    [(bitshuffle(), 5), (bitshuffle(), 1000), (blosc2(), 4), ({"compression": "gzip"}, 4)],
    ids=["lz4, in blocks", "lz4", "blosc2", "gzip"],
)
def test_pixels_that_cannot_be_decoded_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, filter: Any, block_images: int
) -> None:
    raw = record(tmp_path, RunSpec(n_writers=3, shape=(16, 16), filter=filter))
    monkeypatch.setattr(validate_pixels, "BLOCK_BYTES", 512 * block_images)
    with h5py.File(raw[1]) as file:
        # Of images 4 and 10.
        chunks = [bytes(dataset(file, "det/data").id.read_direct_chunk((row, 0, 0))[1]) for row in (1, 3)]
    for chunk in chunks:
        damage(raw[1], chunk)
    assert problems(tmp_path) == []
    report = validate_run(tmp_path, pixels=True)
    (found,) = report.problems
    expected = "file1.h5: pixels: expected those of all 13 images, got none of 2, image ids 4, 10 "
    assert found.text.startswith(f"{tmp_path}/{expected}")
    assert "file1.h5: is damaged: " in found.text
    assert report.unreadable == IdRanges(2, ((4, 4), (10, 10)))


def test_pixels_that_were_never_stored_are_found_without_reading(tmp_path: Path) -> None:
    raw = record(tmp_path, RunSpec(n_writers=2, shape=(64, 64)))
    with h5py.File(raw[0], "r+") as file:
        rows = dataset(file, "det/metadata")
        n = len(rows)
        rows.resize(n + 5, axis=0)
        rows[n:] = [(image_id, 1) for image_id in range(40, 50, 2)]
        dataset(file, "det/data").resize(n + 5, axis=0)
    report = validate_run(raw[0])
    assert report.unreadable.number == 5 - (-n % 4)
    assert any("file0.h5: pixels: expected" in problem.text for problem in report.problems)
    assert report.unreadable == validate_run(raw[0], pixels=True).unreadable


def set_status(path: Path, row: int, status: int) -> None:
    with h5py.File(path, "r+") as file:
        rows = dataset(file, "det/metadata")
        rows[row] = (rows[row]["image_id"], status)


def test_bad_images_are_listed(tmp_path: Path) -> None:
    raw = record(tmp_path, n_good=34)
    for path, row, status in ((raw[0], 1, 3), (raw[1], 1, 3), (raw[2], 1, 2)):
        set_status(path, row, status)
    report = validate_run(tmp_path)
    assert (report.n_good, report.damaged, report.overwritten) == (
        34,
        IdRanges(1, ((5, 5),)),
        IdRanges(2, ((3, 4),)),
    )
    assert [problem.about for problem in report.problems] == ["images", "images"]
    assert "expected good ones, got 2 overwritten or failed, image ids 3-4" in report.problems[1].text
    assert [line for line in report.lines() if line.startswith("  overwritten")] == [
        "  overwritten or failed   2: image ids 3-4"
    ]


Harm = Callable[[list[Path]], object]


def with_id(raw: Path, row: int, image_id: int) -> None:
    with h5py.File(raw, "r+") as file:
        dataset(file, "det/metadata")[row] = (image_id, 1)


def cut_rows(raw: Path) -> None:
    with h5py.File(raw, "r+") as file:
        dataset(file, "det/data").resize(4, axis=0)


def replace_by_fifo(raw: Path) -> None:
    raw.unlink()
    os.mkfifo(raw)


OTHER_RUN = RunSpec(n_writers=3, run_id="run-2")
# What is done to the raw files of a run, and a part of its first problem.
HARMS: dict[str, tuple[Harm, str]] = {
    "missing": (lambda raw: raw[1].unlink(), "file1.h5: is missing, no such file"),
    "last missing": (lambda raw: raw[2].unlink(), "file2.h5: is missing, the run has 3 writers"),
    "truncated": (lambda raw: os.truncate(raw[1], 3000), "file1.h5: is truncated"),
    "no HDF5": (lambda raw: raw[1].write_bytes(b"x"), "file1.h5: is not an HDF5 file"),
    "short": (lambda raw: cut_rows(raw[1]), "file1.h5: is short"),
    "pipe": (lambda raw: replace_by_fifo(raw[1]), "file1.h5: expected a file, got a pipe"),
    "twice in one file": (
        lambda raw: with_id(raw[0], 2, 3),
        "file0.h5: row 2: expected an image id above 3, or a restart, got image 3",
    ),
    "of another writer": (
        lambda raw: with_id(raw[1], 1, 2),
        "file1.h5: holds image 2, which belongs to writer 2 of 3",
    ),
    "out of order": (
        lambda raw: with_id(raw[1], 3, 4),
        "file1.h5: row 3: expected an image id above 7, or a restart, got image 4",
    ),
    "metadata": (lambda raw: raw[0].with_name("fileMeta.h5").write_bytes(b"x"), "fileMeta.h5: is not"),
    "master": (lambda raw: raw[0].with_name("fileMaster.h5").write_bytes(b"x"), "fileMaster.h5: is not"),
    "another run": (
        lambda raw: write_raw_file(raw[1], stream(range(1, 40, 3)), OTHER_RUN, 1),
        "file1.h5: is not of the same run as",
    ),
}


@pytest.mark.parametrize("name", HARMS)
def test_harmed_files_are_named(tmp_path: Path, name: str) -> None:
    harm, expected = HARMS[name]
    harm(record(tmp_path))
    assert expected in problems(tmp_path, pixels=True)[0]


def test_an_image_in_two_files_is_a_problem(tmp_path: Path) -> None:
    raw = record(tmp_path, RunSpec(division="arrival"))
    with_id(raw[1], 1, 2)
    assert "file0.h5 and file1.h5: both hold image 2" in problems(tmp_path)[0]


def test_a_run_without_any_readable_file_is_refused(tmp_path: Path) -> None:
    for path in record(tmp_path):
        os.truncate(path, 3000)
    with pytest.raises(
        FileLayoutError, match=r"file0\.h5: is truncated.*none of the 3 raw files can be read"
    ):
        validate_run(tmp_path)
    with pytest.raises(FileLayoutError, match=r"other0\.h5: is missing"):
        validate_run(tmp_path, "other")


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"count": 38}, "count: expected 37 as in the raw files, got 38"),
        ({"n_good": 30}, "n_good: expected 37 as in the raw files, got 30"),
        ({"n_skipped": 0}, "n_skipped: expected 3 as in the raw files, got 0"),
        ({"n_dropped": 2}, "account: expected no dropped images, got 2"),
        ({"run_id": "run-2"}, "account: expected run_id run-1 of the raw files, got run-2"),
        ({"outcome": "error", "reason": "why"}, "account: expected a run that was saved, got error: why"),
    ],
)
def test_an_account_that_disagrees_with_the_files_is_a_problem(
    tmp_path: Path, changed: dict[str, Any], expected: str
) -> None:
    record(tmp_path, **changed)
    (found,) = problems(tmp_path)
    assert found.startswith("fileMaster.h5: account")
    assert expected in found


def test_a_file_that_was_not_closed_is_a_problem(tmp_path: Path) -> None:
    raw = record(tmp_path)
    content = bytearray(raw[1].read_bytes())
    from stddaq.files.repair import lookup3

    content[11] = 5  # The consistency flags of the superblock.
    content[44:48] = lookup3(bytes(content[:44])).to_bytes(4, "little")
    raw[1].write_bytes(content)
    (found,) = problems(tmp_path, pixels=True)
    assert found.startswith("file1.h5: was not closed: ")


def test_a_master_file_that_shows_other_images_is_a_problem(tmp_path: Path) -> None:
    raw = record(tmp_path)
    with h5py.File(tmp_path / "fileMaster.h5", "r+") as file:
        dataset(file, "/entry/data/image_id")[4] = 100
    assert problems(tmp_path) == ["fileMaster.h5: does not show the images that are in the raw files now"]
    assert len(raw) == 3
