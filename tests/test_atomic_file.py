"""Atomic replacement of files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stddaq.atomic_file import create_file, replace_file, replacing


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_file_appears_when_the_block_succeeds(tmp_path: Path) -> None:
    with replacing(tmp_path / "a") as temporary:
        temporary.write_text("new")
        assert not (tmp_path / "a").exists()
        assert temporary.parent == tmp_path
    assert (tmp_path / "a").read_text() == "new"
    assert names(tmp_path) == ["a"]


def test_old_file_stays_whole_for_its_readers(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with (tmp_path / "a").open() as reader:
        with replacing(tmp_path / "a") as temporary:
            temporary.write_text("new")
        assert reader.read() == "old"
    assert (tmp_path / "a").read_text() == "new"


def test_failed_block_leaves_everything_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")

    def fail() -> None:
        with replacing(tmp_path / "a") as temporary:
            temporary.write_text("half")
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        fail()
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_existing_file_is_refused_without_overwrite(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("nowhere")
    with (
        pytest.raises(FileExistsError, match="expected a new file"),
        replacing(tmp_path / "a", overwrite=False),
    ):
        pytest.fail("the block ran")


def test_file_that_appears_meanwhile_is_not_replaced_without_overwrite(tmp_path: Path) -> None:
    def create() -> None:
        with replacing(tmp_path / "a", overwrite=False) as temporary:
            temporary.write_text("mine")
            (tmp_path / "a").write_text("theirs")

    with pytest.raises(FileExistsError, match="expected a new file"):
        create()
    assert (tmp_path / "a").read_text() == "theirs"
    assert names(tmp_path) == ["a"]


def test_planted_link_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / f".a.{os.getpid()}").symlink_to(victim)
    with replacing(tmp_path / "a") as temporary:
        temporary.write_text("new")
    assert victim.read_text() == "precious"


def test_replaced_file_keeps_mode_and_owner(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    path.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(path, 12345, 54321)
    before = path.stat()
    replace_file(path, b"new")
    after = path.stat()
    assert path.read_bytes() == b"new"
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert names(tmp_path) == ["a"]


def test_created_file_is_never_an_existing_one(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(FileExistsError):
        create_file(tmp_path / "a", b"new", like=tmp_path / "a")
    assert (tmp_path / "a").read_text() == "old"
