"""A path below the roots that is replaced by a link after it was checked."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from support.data.raw_files import ROW, stream, write_run

from stddaq.files.aggregate import aggregate_run
from stddaq.files.master_file import create_master_file
from stddaq.files.sources import check_sources
from stddaq.web import h5_requests
from stddaq.web.errors import PathForbiddenError
from stddaq.web.h5_requests import run_request
from stddaq.web.roots import Roots


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """Return a directory outside the root, with a raw file that nobody may read through the service."""
    directory = tmp_path / "outside"
    directory.mkdir()
    with h5py.File(directory / "file0.h5", "w") as file:
        file["det/metadata"] = np.array([(4711, 1)], ROW)
    return directory


@pytest.fixture
def below(tmp_path: Path) -> Path:
    """Return a directory of a user below the root, with a run."""
    directory = tmp_path / "root" / "user"
    directory.mkdir(parents=True)
    raw = write_run(directory, stream(range(10)))
    create_master_file(directory / "fileMaster.h5", raw)
    return directory


@pytest.fixture
def roots(below: Path) -> Roots:
    return Roots([str(below.parent)])


@pytest.mark.parametrize("replaced", ["the file", "its directory"])
@pytest.mark.parametrize("request_name", ["read_metadata", "get_metadata_status"])
def test_a_file_is_not_read_through_a_link(
    roots: Roots, below: Path, outside: Path, request_name: str, replaced: str
) -> None:
    arguments: dict[str, Any] = {"filename": roots.existing_file(f"{below}/file0.h5", "filename")}
    if request_name == "read_metadata":
        arguments |= {"first_row": 0, "max_rows": 10}
    assert run_request(roots, request_name, arguments)
    if replaced == "the file":
        (below / "file0.h5").unlink()
        (below / "file0.h5").symlink_to(outside / "file0.h5")
    else:
        shutil.rmtree(below)
        below.symlink_to(outside)
    with pytest.raises(PathForbiddenError, match=r"expected a path below .*root, got a path outside"):
        run_request(roots, request_name, arguments)


def test_a_source_of_a_master_file_is_not_read_through_a_link(
    roots: Roots, below: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = roots.existing_file(f"{below}/fileMaster.h5", "filename")

    def check_then_replace(*arguments: Any) -> None:
        check_sources(*arguments)
        with h5py.File(outside / "file0.h5", "a") as file:
            del file["det/metadata"]
            file["det/metadata"] = np.array([(4711 + i, 1) for i in range(5)], ROW)
        (below / "file0.h5").unlink(missing_ok=True)
        (below / "file0.h5").symlink_to(outside / "file0.h5")

    monkeypatch.setattr(h5_requests, "check_sources", check_then_replace)
    with pytest.raises(PathForbiddenError, match="got a path outside"):
        run_request(roots, "read_metadata", {"filename": path, "first_row": 0, "max_rows": 10})


def test_a_master_file_is_not_made_through_a_link(
    roots: Roots, below: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = below.parent / "target"
    target.mkdir()

    def replace_then_make(*arguments: Any, **options: Any) -> Any:
        target.rmdir()
        target.symlink_to(outside)
        return aggregate_run(*arguments, **options)

    monkeypatch.setattr(h5_requests, "aggregate_run", replace_then_make)
    arguments = {"base_path": below, "output_file": f"{target}/x.h5", "file_prefix": "file"}
    with pytest.raises(PathForbiddenError, match="expected a directory below"):
        run_request(roots, "create_interleaved_vds", arguments)
    assert not (outside / "x.h5").exists()
