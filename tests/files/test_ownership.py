"""The run of a raw file whose name fits two prefixes."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.data.raw_files import RunSpec, stream, write_run

from stddaq.files.ownership import file_of_other_prefix

IMAGES = stream(range(24))


@pytest.mark.parametrize("by_stddaq", [True, False])
def test_raw_files_of_a_shorter_prefix_are_recognised(tmp_path: Path, by_stddaq: bool) -> None:
    write_run(tmp_path, IMAGES, RunSpec(n_writers=12, prefix="w", by_stddaq=by_stddaq))
    paths = RunSpec(prefix="w1").raw_paths(tmp_path)
    assert file_of_other_prefix(paths, "w1") == (tmp_path / "w10.h5", "w")
    assert file_of_other_prefix(RunSpec(n_writers=12, prefix="w").raw_paths(tmp_path), "w") is None


def test_the_content_decides_if_the_names_do_not(tmp_path: Path) -> None:
    write_run(tmp_path, IMAGES, RunSpec(n_writers=10, prefix="w"))
    of_w1 = write_run(tmp_path, IMAGES, RunSpec(prefix="w1"))
    assert file_of_other_prefix(of_w1, "w1") is None
    paths = RunSpec(n_writers=12, prefix="w").raw_paths(tmp_path)
    assert file_of_other_prefix(paths, "w") == (tmp_path / "w10.h5", "w1")


def test_files_of_cpp_writers_belong_to_the_prefix_with_which_none_is_missing(tmp_path: Path) -> None:
    of_w1 = write_run(tmp_path, IMAGES, RunSpec(prefix="w1", by_stddaq=False))
    assert file_of_other_prefix(of_w1, "w1") is None
    assert file_of_other_prefix([tmp_path / "w10.h5"], "w") == (tmp_path / "w10.h5", "w1")


def test_a_single_file_that_is_not_a_raw_file_belongs_to_no_run(tmp_path: Path) -> None:
    (tmp_path / "w11.h5").write_text("notes")
    assert file_of_other_prefix([tmp_path / "w11.h5"], "w1") is None
