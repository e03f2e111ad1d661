"""`stddaq repair`: what it prints, and its exit code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.data.raw_files import RunSpec, stream, write_raw_file

from stddaq import client
from stddaq.cli import main


def repair(*arguments: object) -> int:
    """Return the exit code of the command."""
    return main(["repair", *map(str, arguments)])


@pytest.mark.parametrize("arguments", [(), ("--run", "file0.h5")])
def test_files_and_the_last_run_exclude_each_other(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    assert repair(*arguments) == 2
    assert "expected either --run or FILE, got both or neither" in capsys.readouterr().err


def test_each_file_is_a_line_and_one_that_cannot_be_repaired_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_raw_file(tmp_path / "file0.h5", stream(range(3)), RunSpec(n_writers=1))
    assert repair(tmp_path / "file0.h5", tmp_path / "absent\x1b.h5") == 2
    shown = capsys.readouterr()
    assert shown.out == f"{tmp_path}/file0.h5: nothing to repair: 3 images\n"
    (line,) = shown.err.splitlines()
    assert line.startswith("stddaq repair: error: ")
    assert "absent\\x1b.h5" in line


class FakeDriver:
    """A driver whose last run left `results`."""

    results: list[dict[str, Any]] = []  # noqa: RUF012

    def __init__(self, url: str) -> None:
        self.url = url

    def __enter__(self) -> FakeDriver:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def repair(self) -> list[dict[str, Any]]:
        return self.results


def result(path: str, **changes: Any) -> dict[str, Any]:
    return {"path": path, "n_images": 5, "n_cut": 1, "repaired": True, "reason": None} | changes


@pytest.mark.parametrize(
    ("results", "code", "out", "err"),
    [
        ([], 0, "the writers have closed all files of the last run", ""),
        ([result("/a/0.h5")], 0, "/a/0.h5: repaired: 5 images, 1 incomplete ones cut off", ""),
        ([result("/a/\x1b.h5")], 0, "/a/\\x1b.h5: repaired", ""),
        ([result("/a/1.h5", repaired=False, reason="no \x1b")], 2, "", "error: no \\x1b"),
    ],
)
def test_the_last_run_is_repaired_by_the_driver(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    results: list[dict[str, Any]],
    code: int,
    out: str,
    err: str,
) -> None:
    monkeypatch.setattr(FakeDriver, "results", results)
    monkeypatch.setattr(client, "DriverClient", FakeDriver)
    assert repair("--run") == code
    shown = capsys.readouterr()
    assert out in shown.out
    assert err in shown.err
    assert "\x1b" not in shown.out + shown.err
