"""The repair of the files of a run, as the process of the driver does it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from support.data.raw_files import RunSpec, stream, write_raw_file

from stddaq.writing.driver import repair
from stddaq.writing.driver.repair import _repair_all, repair_as


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """Return a raw file of 7 images that was closed."""
    path = tmp_path / "file0.h5"
    write_raw_file(path, stream(range(7)), RunSpec(n_writers=1))
    return path


def test_a_closed_file_is_left_alone(whole: Path) -> None:
    expected = {"path": str(whole), "n_images": 7, "n_cut": 0, "repaired": False, "reason": None}
    assert _repair_all(0, [whole], [whole.parent]) == [expected]


def test_a_file_that_a_process_writes_to_is_refused_by_its_pid(whole: Path) -> None:
    with whole.open("r+b"):
        (result,) = _repair_all(0, [whole], [])
    assert f"one written by process {os.getpid()}" in result["reason"]
    assert result["n_images"] is None


def test_each_file_that_cannot_be_repaired_has_a_reason_with_its_path(whole: Path, tmp_path: Path) -> None:
    broken, link, absent = (tmp_path / f"file{i}.h5" for i in (1, 2, 3))
    broken.write_bytes(b"not HDF5")
    link.symlink_to(whole)
    results = _repair_all(0, [broken, link, absent, whole], [])
    for path, result in zip((broken, link, absent), results, strict=False):
        assert str(path) in result["reason"]
        assert "/proc/" not in result["reason"]
    assert results[-1]["reason"] is None


def test_a_directory_outside_the_roots_is_refused(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (result,) = _repair_all(0, [whole], [tmp_path / "root"])
    assert "expected a directory below" in result["reason"]


def test_a_process_does_it_for_the_driver(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    users: list[int] = []
    monkeypatch.setattr(repair, "drop_rights", users.append)
    uid = os.geteuid()
    task = repair_as(uid, [whole], switch_user_active=bool(uid), roots=[], timeout=60)
    (result,) = asyncio.run(task)
    assert (result["n_images"], result["repaired"]) == (7, False)
