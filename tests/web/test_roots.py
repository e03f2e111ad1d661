"""`Roots`: paths below the roots pass, whatever they look like; others raise domain errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from stddaq.web.errors import PathForbiddenError, PathNotFoundError, RequestInvalidError
from stddaq.web.roots import Roots


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a root with a file in it and one outside."""
    root = tmp_path / "root"
    (root / "below").mkdir(parents=True)
    (root / "file.h5").touch()
    (tmp_path / "outside.h5").touch()
    (root / "link.h5").symlink_to("file.h5")
    (root / "link_out.h5").symlink_to(tmp_path / "outside.h5")
    return root


@pytest.fixture
def roots(root: Path) -> Roots:
    return Roots([str(root)])


@pytest.mark.parametrize("name", ["file.h5", "link.h5", "below/../file.h5"])
def test_existing_file_is_resolved(roots: Roots, root: Path, name: str) -> None:
    assert roots.existing_file(f"{root}/{name}", "filename") == (root / "file.h5").resolve()


@pytest.mark.parametrize("name", ["../outside.h5", "../absent.h5", "link_out.h5", "below/../../outside.h5"])
def test_path_outside_is_forbidden_whether_or_not_it_exists(roots: Roots, root: Path, name: str) -> None:
    with pytest.raises(PathForbiddenError, match=r"expected a path below .*, got a path outside"):
        roots.existing_file(f"{root}/{name}", "filename")


def test_without_roots_every_path_is_forbidden(root: Path) -> None:
    with pytest.raises(PathForbiddenError, match="expected a service started with --root"):
        Roots([]).existing_file(f"{root}/file.h5", "filename")


def test_missing_file_is_named(roots: Roots, root: Path) -> None:
    with pytest.raises(PathNotFoundError, match=r"filename: .*/absent\.h5 does not exist"):
        roots.existing_file(f"{root}/absent.h5", "filename")


@pytest.mark.parametrize("name", ["relative.h5", "/a\0b", "/\ud800"])
def test_text_that_is_no_absolute_path_is_invalid(roots: Roots, name: str) -> None:
    with pytest.raises(RequestInvalidError, match="filename: expected "):
        roots.existing_file(name, "filename")


def test_kind_of_the_path_must_be_right(roots: Roots, root: Path) -> None:
    with pytest.raises(RequestInvalidError, match="expected a file, got something else"):
        roots.existing_file(f"{root}/below", "filename")
    with pytest.raises(RequestInvalidError, match="expected a directory, got something else"):
        roots.existing_directory(f"{root}/file.h5", "base_path")


def test_new_file_is_below_a_root_in_an_existing_directory(roots: Roots, root: Path) -> None:
    assert roots.new_file(root, "new.h5", "output_file") == root / "new.h5"
    assert roots.new_file(root, f"{root}/below/new.h5", "output_file") == root / "below" / "new.h5"
    for name in ("../new.h5", "link_out.h5/../../new.h5", "/new.h5"):
        with pytest.raises(PathForbiddenError):
            roots.new_file(root, name, "output_file")
    for name in ("..", "absent/new.h5", ""):
        with pytest.raises((RequestInvalidError, PathForbiddenError)):
            roots.new_file(root, name, "output_file")
