"""A directory that is kept open: links lead nowhere, and errors name the whole path."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from stddaq.open_directory import OpenDirectory, OutsideRootsError


def test_a_file_is_created_where_the_directory_was_opened(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with OpenDirectory(tmp_path / "run") as directory:
        (tmp_path / "run").rename(tmp_path / "renamed")
        (tmp_path / "run").mkdir()
        os.close(directory.create("file"))
    assert [path.name for path in (tmp_path / "renamed").iterdir()] == ["file"]
    assert not any((tmp_path / "run").iterdir())


@pytest.mark.parametrize("is_link", [False, True])
def test_an_existing_name_is_refused_with_its_whole_path(tmp_path: Path, is_link: bool) -> None:
    path = tmp_path / "file"
    if is_link:
        path.symlink_to(tmp_path / "absent")
    else:
        path.touch()
    with OpenDirectory(tmp_path) as directory, pytest.raises(FileExistsError) as raised:
        directory.create("file")
    assert raised.value.filename == str(path)
    assert not (tmp_path / "absent").exists()


def test_a_link_is_not_opened_and_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("precious")
    (tmp_path / "link").symlink_to("target")
    os.mkfifo(tmp_path / "pipe")
    with OpenDirectory(tmp_path) as directory:
        with pytest.raises(OSError, match=f"{tmp_path}/link"), directory.opened("link"):
            pass
        with directory.opened("pipe") as path:
            assert path.is_fifo()
        with directory.opened("target") as path:
            assert path.read_text() == "precious"


def test_a_link_to_a_directory_is_followed_only_on_request(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to("run")
    OpenDirectory(tmp_path / "link").close()
    with pytest.raises(NotADirectoryError):
        OpenDirectory(tmp_path / "link", follow=False)


def test_a_directory_outside_the_roots_is_refused_even_by_a_link_below_them(tmp_path: Path) -> None:
    for name in ("root", "elsewhere"):
        (tmp_path / name).mkdir()
    (tmp_path / "root/link").symlink_to(tmp_path / "elsewhere")
    OpenDirectory(tmp_path / "root", roots=[tmp_path / "absent", tmp_path / "root"]).close()
    for path in (tmp_path / "root/link", tmp_path / "elsewhere"):
        with pytest.raises(OutsideRootsError, match="expected a directory below"):
            OpenDirectory(path, roots=[tmp_path / "root"])


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL])
def test_an_unnamed_file_needs_no_support_of_the_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    refuse_unnamed(monkeypatch, code)
    with OpenDirectory(tmp_path) as directory:
        fd = directory.create_unnamed()
    assert os.fstat(fd).st_nlink == 0
    os.close(fd)
    assert not any(tmp_path.iterdir())


def test_a_full_disk_is_reported_for_an_unnamed_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_unnamed(monkeypatch, errno.ENOSPC)
    with OpenDirectory(tmp_path) as directory, pytest.raises(OSError, match="an unnamed file") as raised:
        directory.create_unnamed()
    assert raised.value.errno == errno.ENOSPC


def refuse_unnamed(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """Let the creation of files without a name fail with `code`."""
    original = os.open

    def refusing(path: Any, flags: int, *args: Any, **options: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(code, os.strerror(code))
        return original(path, flags, *args, **options)

    monkeypatch.setattr(os, "open", refusing)


def test_names_are_changed_within_the_directory(tmp_path: Path) -> None:
    with OpenDirectory(tmp_path) as directory:
        os.close(directory.create("first", 0o600))
        directory.link("first", "second")
        with pytest.raises(FileExistsError, match=f"{tmp_path}/second"):
            directory.link("first", "second")
        directory.replace("first", "third")
        directory.flush()
        directory.remove("absent")
        directory.remove("second")
        assert directory.status("second") is None
        status = directory.status("third")
        assert status is not None
        assert (status.st_nlink, status.st_mode & 0o777) == (1, 0o600)


def test_a_copy_outlives_the_original_and_closing_again_does_nothing(tmp_path: Path) -> None:
    directory = OpenDirectory(tmp_path)
    copy = directory.copy()
    directory.close()
    directory.close()
    os.close(copy.create("file"))
    copy.close()
    assert (tmp_path / "file").exists()
