"""Commands that make files leave others as they are, and stop where they are interrupted."""

from __future__ import annotations

import json
import os
import signal
import weakref
from pathlib import Path

import h5py
import pytest
from support.data.nexus_metadata import SCAN
from support.data.raw_files import RunSpec, stream, write_run

from stddaq.cli import main
from stddaq.files.export import run as export
from stddaq.files.export.run import OnProgress, export_run


def stddaq(*arguments: object) -> int | str | None:
    try:
        return main(list(map(str, arguments)))
    except SystemExit as ended:
        return ended.code


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return the directory of a run of 9 images."""
    (tmp_path / "run").mkdir()
    write_run(tmp_path / "run", stream(range(9)), RunSpec(shape=(6, 8)))
    return tmp_path / "run"


def test_a_file_with_images_of_its_own_is_never_replaced(
    tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    write_run(other, stream(range(5)), RunSpec(shape=(6, 8)))
    export_run(other, other / "copy.h5")
    (other / "meta.json").write_text(json.dumps(SCAN))
    before = {path: path.read_bytes() for path in sorted(other.iterdir())}
    assert len(before) > 3
    for path in before:
        nexus = ["nexus", run, "--overwrite", "--from", other / "meta.json", "-o", path]
        tomography = ["--definition", "NXtomo", "--keys", "projection:9", "--angles", "0:180"]
        for command in (
            [*nexus, "--definition", "NXmx"],
            [*nexus, *tomography],
            ["aggregate", run, "--overwrite", "-o", path],
        ):
            assert stddaq(*command) == 2, command
            assert f"{path}: expected a new file, or one to replace" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in sorted(other.iterdir())} == before


@pytest.mark.parametrize("command", ["NXmx", "NXtomo"])
def test_a_file_of_another_program_with_the_usual_name_is_never_replaced(
    run: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run / {"NXmx": "file_master.h5", "NXtomo": "file_tomo.h5"}[command]
    with h5py.File(path, "w") as file:
        file["data"] = [1, 2, 3]
    before = path.read_bytes()
    (run.parent / "meta.json").write_text(json.dumps(SCAN))
    scan = ["--keys", "projection:9", "--angles", "0:180"] if command == "NXtomo" else []
    arguments = ["nexus", run, "--from", run.parent / "meta.json", "--definition", command, *scan]
    assert stddaq(*arguments, "--overwrite") == 2
    assert f"{path}: expected a new file, or one to replace" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_a_file_over_raw_files_is_replaced_on_request(run: Path) -> None:
    for path in (run / "fileMaster.h5", run / "further.h5"):
        assert stddaq("aggregate", run, "-o", path) == 0
        before = path.read_bytes()
        assert stddaq("aggregate", run, "-o", path) == 2
        assert path.read_bytes() == before
        assert stddaq("aggregate", run, "-o", path, "--overwrite") == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_export_that_is_interrupted_while_an_object_is_removed_ends(
    run: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def export_images(*_: object, on_progress: OnProgress, **__: object) -> int:
        # Exceptions of what is called then are lost; h5py lets functions be called so for all its objects.
        removed = RunSpec()
        weakref.finalize(removed, os.kill, os.getpid(), number)
        del removed
        on_progress("writing", 1, 9)
        return 9

    monkeypatch.setattr(export, "export_run", export_images)
    assert stddaq("export", run, run.parent / "out.h5") == 130
    assert "interrupted; the same command continues it" in capsys.readouterr().err
