"""The files of a run are found by directory and prefix, or by any of its files."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.data.raw_files import RunSpec, stream, write_run

from stddaq.errors import FileLayoutError, OutputExistsError
from stddaq.files.aggregate import aggregate_run
from stddaq.files.names import (
    files_over_raw_files,
    find_run,
    in_writer_order,
    master_file_name,
    metadata_file_name,
    next_numbered_prefix,
    nxmx_file_name,
    prefixes_in,
    raw_file_name,
)


def touch(directory: Path, *names: str) -> None:
    for name in names:
        (directory / name).touch()


def test_run_is_found_from_any_of_its_files_in_the_order_of_its_writers(tmp_path: Path) -> None:
    names = [f"file{writer}.h5" for writer in range(12)]
    touch(tmp_path, *names, "fileMeta.h5", "other0.h5", "file01.h5", "notes.txt")
    for path in (tmp_path, *(tmp_path / name for name in names), tmp_path / "fileMeta.h5"):
        found = find_run(path)
        assert [raw.name for raw in found.raw] == names
        assert found.metadata == tmp_path / "fileMeta.h5"
        assert found.master == tmp_path / "fileMaster.h5"
        # A run can be named by a master file that does not exist.
        assert find_run(found.master) == found
    assert find_run(tmp_path, "other").metadata is None


def test_prefixes_that_end_in_digits_are_distinguished(tmp_path: Path) -> None:
    touch(tmp_path, "scan0.h5", "scan1.h5", "scan10.h5", "scan11.h5", "scan2020.h5", "scan2021.h5")
    assert [raw.name for raw in find_run(tmp_path, "scan").raw] == ["scan0.h5", "scan1.h5"]
    assert [raw.name for raw in find_run(tmp_path, "scan1").raw] == ["scan10.h5", "scan11.h5"]
    assert find_run(tmp_path / "scan2021.h5").prefix == "scan202"


def test_prefixes_of_a_directory_are_those_of_its_runs(tmp_path: Path) -> None:
    touch(tmp_path, "a0.h5", "a1.h5", "aMaster.h5", "a10.h5", "a11.h5", "a1Master.h5", "b0.h5", "cMeta.h5")
    touch(tmp_path, "calibration.h5", "year2024.h5", "notes.txt", "Master.h5", "d0.h5.part")
    assert prefixes_in(tmp_path) == ["", "a", "a1", "b", "c"]


def test_numbered_prefixes_continue_after_the_last_of_the_directory(tmp_path: Path) -> None:
    assert next_numbered_prefix(tmp_path, "scan") == "scan_0001_"
    touch(tmp_path, "scan_0001_0.h5", "scan_0007_Master.h5", "scan_0009_notes.h5", "scan0010_0.h5")
    assert next_numbered_prefix(tmp_path, "scan") == "scan_0008_"
    assert next_numbered_prefix(tmp_path, "a.c") == "a.c_0001_"
    touch(tmp_path, "scan_9999_Meta.h5", "abc_0003_0.h5")
    assert next_numbered_prefix(tmp_path, "scan") == "scan_10000_"
    assert next_numbered_prefix(tmp_path, "a.c") == "a.c_0001_"


@pytest.mark.parametrize("given", ["file0.h5", "file3.h5", "fileMeta.h5", "."])
def test_missing_raw_file_in_the_middle_is_named(tmp_path: Path, given: str) -> None:
    touch(tmp_path, "file0.h5", "file1.h5", "file3.h5")
    with pytest.raises(FileLayoutError, match=r"file2\.h5: is missing, although file3\.h5 exists"):
        find_run(tmp_path / given)


@pytest.mark.parametrize("given", ["nowhere", "nothing0.h5", "nowhere/file0.h5", "name.txt", "nameMeta.h5"])
def test_path_without_a_run_is_named(tmp_path: Path, given: str) -> None:
    touch(tmp_path, "name.txt")
    with pytest.raises(FileLayoutError, match=given.split("/")[0]):
        find_run(tmp_path / given)
    with pytest.raises(FileLayoutError, match=r"file0\.h5: is missing"):
        find_run(tmp_path)


def test_files_of_a_shell_pattern_are_sorted_by_writer() -> None:
    names = [f"run7_{writer}.h5" for writer in range(23)]
    assert [path.name for path in in_writer_order([Path(name) for name in sorted(names)])] == names


def test_aggregate_takes_a_directory_a_file_or_a_shell_pattern(tmp_path: Path) -> None:
    write_run(tmp_path, stream(range(30)), RunSpec(n_writers=12, metadata_file=True))
    assert aggregate_run([tmp_path]).path == tmp_path / "fileMaster.h5"
    with pytest.raises(OutputExistsError):
        aggregate_run([tmp_path / "file3.h5"])
    assert aggregate_run([tmp_path / "file3.h5"], overwrite=True).n_images == 30
    (tmp_path / "file_master.h5").touch()
    pattern = sorted(tmp_path.glob("file*.h5"))
    again = aggregate_run(pattern, overwrite=True)
    assert again.n_images == 30
    assert again.metadata_file == tmp_path / "fileMeta.h5"
    elsewhere = aggregate_run([tmp_path], output=tmp_path / "all.h5", prefix="file")
    assert elsewhere.path == tmp_path / "all.h5"
    with pytest.raises(FileLayoutError):
        aggregate_run([])


def test_names_of_files_follow_the_specification() -> None:
    assert [raw_file_name("scan_", i) for i in (0, 1, 10)] == ["scan_0.h5", "scan_1.h5", "scan_10.h5"]
    assert metadata_file_name("file") == "fileMeta.h5"
    assert master_file_name("file") == "fileMaster.h5"
    assert nxmx_file_name("file") == "file_master.h5"


def test_nxmx_file_is_one_of_the_run(tmp_path: Path) -> None:
    touch(tmp_path, "scan_7_0.h5", "scan_7__master.h5", "other_master.h5")
    assert find_run(tmp_path / "scan_7__master.h5").nxmx == tmp_path / "scan_7__master.h5"
    assert prefixes_in(tmp_path) == ["scan_7_"]
    assert [path.name for path in files_over_raw_files(tmp_path, "scan_7_")] == ["scan_7__master.h5"]
    assert next_numbered_prefix(tmp_path, "scan") == "scan_0001_"
    touch(tmp_path, "scan_0003__master.h5")
    assert next_numbered_prefix(tmp_path, "scan") == "scan_0004_"
