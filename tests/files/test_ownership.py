"""Which run a raw file belongs to whose name fits two prefixes."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.data.raw_files import RunSpec, stream, write_run

from stddaq.files.ownership import file_of_other_prefix

IMAGES = stream(range(24))


@pytest.mark.parametrize("ours", [True, False])
def test_raw_files_of_a_shorter_prefix_are_recognised(tmp_path: Path, ours: bool) -> None:
    write_run(tmp_path, IMAGES, RunSpec(n_writers=12, prefix="w", ours=ours))
    paths = RunSpec(prefix="w1").raw_paths(tmp_path)
    assert file_of_other_prefix(paths, "w1") == (tmp_path / "w10.h5", "w")
    assert file_of_other_prefix(RunSpec(n_writers=12, prefix="w").raw_paths(tmp_path), "w") is None


def test_the_files_say_it_where_the_names_do_not(tmp_path: Path) -> None:
    write_run(tmp_path, IMAGES, RunSpec(n_writers=10, prefix="w"))
    of_w1 = write_run(tmp_path, IMAGES, RunSpec(prefix="w1"))
    assert file_of_other_prefix(of_w1, "w1") is None
    paths = RunSpec(n_writers=12, prefix="w").raw_paths(tmp_path)
    assert file_of_other_prefix(paths, "w") == (tmp_path / "w10.h5", "w1")


def test_files_of_cpp_writers_belong_to_the_prefix_with_which_none_is_missing(tmp_path: Path) -> None:
    of_w1 = write_run(tmp_path, IMAGES, RunSpec(prefix="w1", ours=False))
    assert file_of_other_prefix(of_w1, "w1") is None
    assert file_of_other_prefix([tmp_path / "w10.h5"], "w") == (tmp_path / "w10.h5", "w1")


def test_a_file_without_neighbours_that_is_no_raw_file_is_of_no_run(tmp_path: Path) -> None:
    (tmp_path / "w11.h5").write_text("notes")
    assert file_of_other_prefix([tmp_path / "w11.h5"], "w1") is None
