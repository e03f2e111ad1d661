"""The command `stddaq`: help, errors and start time."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
from pathlib import Path

import h5py
import pytest
from support.processes.deployment import free_port

import stddaq
from stddaq.cli import main
from stddaq.daemon.arguments import user_id

HEAVY = ("h5py", "numpy", "pydantic", "websockets", "zmq", "google.protobuf", "rich", "PIL", "asyncio")
COMMANDS = (
    *("demo", "init", "up", "record", "status", "stop", "watch", "trigger", "info", "aggregate", "nexus"),
    *("repair", "doctor", "plan", "units", "deployment", "completion"),
)


def imported_by(code: str) -> set[str]:
    """Return the names of the modules that a fresh interpreter has imported after `code`."""
    script = f"import sys, json\n{code}\nprint(json.dumps(list(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    return set(json.loads(output.splitlines()[-1]))


@pytest.mark.parametrize(
    "code",
    [
        "import stddaq",
        "from stddaq.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass",
        "from stddaq.cli import main\ntry: main(['up', '--help'])\nexcept SystemExit: pass",
    ],
)
def test_import_and_help_pull_in_nothing_heavy(code: str):
    assert imported_by(code).isdisjoint(HEAVY)


def test_client_pulls_in_no_file_library():
    assert imported_by("import stddaq.client").isdisjoint(("h5py", "numpy", "PIL", "rich"))


@pytest.mark.parametrize("command", [*COMMANDS, "simulate", "replay"])
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"usage: stddaq {command}" in capsys.readouterr().out


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(f"    {command}" in text for command in (*COMMANDS, "simulate", "replay"))


def test_python_m_stddaq_is_the_command():
    output = subprocess.run(
        [sys.executable, "-m", "stddaq", "--version"], capture_output=True, text=True, check=True
    ).stdout
    assert output.strip() == stddaq.__version__


@pytest.mark.parametrize(
    "argv",
    [
        ["fly"],
        ["up"],
        ["up", "/absent.json"],
        ["info"],
        ["info", "/absent.h5"],
        ["aggregate", "/absent"],
        ["repair", "/absent.h5"],
        ["trigger", "/absent.json"],
        ["simulate"],
        ["replay", "/absent.json"],
    ],
)
def test_a_bad_argument_is_exit_code_2_and_one_line(argv: list[str], capsys: pytest.CaptureFixture[str]):
    try:
        code = main(argv)
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert captured.err.startswith("stddaq")


def test_the_command_alone_prints_its_help(capsys: pytest.CaptureFixture[str]):
    assert main([]) == 0
    captured = capsys.readouterr()
    assert all(command in captured.out for command in COMMANDS)
    assert captured.err == ""


@pytest.mark.parametrize(
    ("argv", "meant"),
    [
        (["recrd"], "record"),
        (["record", "/tmp", "--n-imges", "5"], "--n-images"),
        (["qqqqq"], None),
        # An option of other commands.
        (["info", "/tmp", "--prefix", "scan"], None),
    ],
)
def test_a_misspelt_word_is_followed_by_the_right_one(
    argv: list[str], meant: str | None, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit):
        main(argv)
    error = capsys.readouterr().err
    assert f"did you mean {meant}?" in error if meant else "did you mean" not in error


def test_the_driver_is_that_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    url = f"ws://127.0.0.1:{free_port()}"
    monkeypatch.setenv("STDDAQ_URL", url)
    with pytest.raises(SystemExit):
        main(["status"])
    assert url in capsys.readouterr().err


def test_the_owner_of_files_may_be_a_name() -> None:
    user = pwd.getpwuid(os.geteuid())
    assert user_id(user.pw_name) == user_id(str(user.pw_uid)) == user.pw_uid


def test_output_without_a_reader_is_not_an_error(tmp_path: Path):
    process = subprocess.run(
        f"{sys.executable} -m stddaq info {tmp_path}/a.h5 2>&1 | true; exit ${{PIPESTATUS[0]}}",
        shell=True,
        check=False,
        executable="/bin/bash",
        capture_output=True,
        text=True,
    )
    assert "Traceback" not in process.stdout + process.stderr


@pytest.mark.parametrize("command", ["info", "repair"])
def test_a_reader_that_closes_the_pipe_ends_the_command_silently(tmp_path: Path, command: str):
    path = tmp_path / "detector0.h5"
    with h5py.File(path, "w"):
        pass
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe:
        process = subprocess.run(
            [sys.executable, "-m", "stddaq", command, path],
            check=False,
            stdout=pipe,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert (process.returncode, process.stderr) == (0, "")
