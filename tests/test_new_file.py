"""Atomic replacement of files, also when links are planted meanwhile."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from stddaq.new_file import NewFile, replace_file, replacing, write_file
from stddaq.open_directory import OpenDirectory, OutsideRootsError


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_file_appears_when_the_block_succeeds(tmp_path: Path) -> None:
    with replacing(tmp_path / "a") as temporary:
        temporary.opened.write_text("new")
        assert not (tmp_path / "a").exists()
        assert temporary.path.parent == tmp_path
    assert (tmp_path / "a").read_text() == "new"
    assert names(tmp_path) == ["a"]


def test_old_file_stays_whole_for_its_readers(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with (tmp_path / "a").open() as reader:
        with replacing(tmp_path / "a") as temporary:
            temporary.opened.write_text("new")
        assert reader.read() == "old"
    assert (tmp_path / "a").read_text() == "new"


def test_failed_block_leaves_everything_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")

    def fail() -> None:
        with replacing(tmp_path / "a") as temporary:
            temporary.opened.write_text("half")
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
            temporary.opened.write_text("mine")
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
        temporary.opened.write_text("new")
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


def test_written_file_is_never_an_existing_one(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with OpenDirectory(tmp_path) as directory, pytest.raises(FileExistsError, match=str(tmp_path / "a")):
        write_file(directory, "a", b"new", like=tmp_path.stat())
    assert (tmp_path / "a").read_text() == "old"


def test_new_file_is_not_made_through_a_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    (tmp_path / "a").symlink_to(victim)
    with pytest.raises(FileExistsError):
        NewFile.create(tmp_path / "a", overwrite=False)
    assert not victim.exists()
    victim.write_text("precious")
    new = NewFile.create(tmp_path / "a", overwrite=True)
    new.opened.write_text("new")
    new.close()
    assert victim.read_text() == "precious"
    assert (tmp_path / "a").read_text() == "new"


def test_overwriting_makes_a_new_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with (tmp_path / "a").open() as reader:
        NewFile.create(tmp_path / "a", overwrite=True).close()
        assert reader.read() == "old"
    assert (tmp_path / "a").read_text() == ""


def test_missing_directory_is_a_short_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        NewFile.create(tmp_path / "missing/a", overwrite=False)
    assert caught.value.strerror == "No such file or directory"


def test_a_planted_file_is_neither_written_nor_removed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    new = NewFile.create(tmp_path / "a", overwrite=False)
    (tmp_path / "a").unlink()
    (tmp_path / "a").symlink_to(victim)
    new.opened.write_text("new")
    new.remove()
    new.close()
    new.close()
    assert (tmp_path / "a").is_symlink()
    assert victim.read_text() == "precious"


def test_directory_that_is_replaced_by_a_link_keeps_its_files(tmp_path: Path) -> None:
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    mine.mkdir()
    theirs.mkdir()
    (theirs / "a").write_text("precious")
    with replacing(mine / "a") as new:
        new.opened.write_text("new")
        mine.rename(tmp_path / "moved")
        mine.symlink_to(theirs)
    assert (theirs / "a").read_text() == "precious"
    assert (tmp_path / "moved/a").read_text() == "new"


def test_file_that_replaces_the_temporary_one_is_noticed(tmp_path: Path) -> None:
    def replace() -> None:
        with replacing(tmp_path / "a") as new:
            new.path.unlink()
            new.path.write_text("theirs")

    with pytest.raises(OSError, match="another process has replaced the file"):
        replace()


def test_files_are_made_below_the_roots_only(tmp_path: Path) -> None:
    inside, outside = tmp_path / "root/inside", tmp_path / "outside"
    inside.mkdir(parents=True)
    outside.mkdir()
    (tmp_path / "root/link").symlink_to(outside)
    roots = [tmp_path / "absent", tmp_path / "root"]
    NewFile.create(inside / "a", overwrite=False, roots=roots).close()
    NewFile.create(tmp_path / "root/a", overwrite=False, roots=roots).close()
    for directory in (outside, tmp_path / "root/link", tmp_path / "root/../outside", tmp_path):
        with pytest.raises(OutsideRootsError, match=r"path: expected a directory below .*root, got "):
            NewFile.create(directory / "a", overwrite=True, roots=roots)
    assert names(outside) == []
    assert n_descriptors_of(tmp_path) == 0


def without_unnamed_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse `O_TMPFILE`, as some file systems do."""
    real = os.open

    def refuse(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), path)
        return real(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", refuse)


@pytest.mark.parametrize("is_supported", [True, False])
def test_unnamed_file_stays_in_its_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_supported: bool
) -> None:
    """Without `O_TMPFILE` the file has a name for a moment, which must not be made through a link."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "others").mkdir()
    with OpenDirectory(tmp_path / "mine") as directory:
        (tmp_path / "mine").rename(tmp_path / "moved")
        (tmp_path / "mine").symlink_to(tmp_path / "others")
        others = (tmp_path / "others").stat()
        if not is_supported:
            without_unnamed_files(monkeypatch)
        fd = directory.create_unnamed()
    assert os.fstat(fd).st_nlink == 0
    os.close(fd)
    assert names(tmp_path / "moved") == names(tmp_path / "others") == []
    assert (tmp_path / "others").stat().st_mtime_ns == others.st_mtime_ns


def n_descriptors_of(path: Path) -> int:
    """Return the number of this process's descriptors below `path`."""
    found = [os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()]
    return len([name for name in found if name.startswith(f"{path}/")])
