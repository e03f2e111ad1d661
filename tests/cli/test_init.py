"""`stddaq init`: configurations by options, by questions, and from the examples."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from stddaq.cli import main as stddaq
from stddaq.cli import ring_space
from stddaq.config import DetectorConfig
from stddaq.config.creation import example_names
from stddaq.config.modules import gaps, position_mistakes

SIZES = {
    "gigafrost": "2016x2016",
    "eiger": "3106x3264",
    "jungfrau-raw": "1030x1066",
    "jungfrau-converted": "1024x512",
    "pco": "2560x2160",
}


@pytest.fixture(autouse=True)
def _directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return the line with which `stddaq init` refuses."""
    with pytest.raises(SystemExit) as ended:
        stddaq(["init", *arguments])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("detector", SIZES)
def test_configuration_by_options_is_complete(detector: str) -> None:
    assert stddaq(["init", "--detector", detector, "--size", SIZES[detector], "--name", "D1"]) == 0
    config = DetectorConfig.load("D1.json")
    width, height = map(int, SIZES[detector].split("x"))
    assert config.image_shape == (height, width)
    assert position_mistakes(config) == []


@pytest.mark.parametrize("detector", SIZES)
def test_usual_values_are_valid(detector: str) -> None:
    assert stddaq(["init", "--detector", detector]) == 0
    assert position_mistakes(DetectorConfig.load(f"{detector}.json")) == []


def test_modules_lie_from_edge_to_edge() -> None:
    stddaq(["init", "jf.json", "--detector", "jungfrau-raw", "--size", "1024x1066"])
    config = DetectorConfig.load("jf.json")
    assert config.n_modules == 2
    (gap,) = gaps(config)
    assert (gap.top, gap.bottom) == (512, 1066 - 512)


def test_examples_are_listed_and_written(capsys: pytest.CaptureFixture[str]) -> None:
    assert stddaq(["init", "--list"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]]
    assert listed == example_names()
    for name in listed:
        assert stddaq(["init", "--example", name]) == 0
        DetectorConfig.load(f"{name}.json")


def test_no_file_is_replaced(capsys: pytest.CaptureFixture[str]) -> None:
    Path("pco.json").write_text("{}")
    assert "pco.json: expected a new file" in refusal(capsys, "--example", "pco")
    assert Path("pco.json").read_text() == "{}"


@pytest.mark.parametrize(
    ("uid", "arguments", "expected"),
    [
        (1000, (), "stddaq up pco.json --source simulate --rate 10"),
        (0, (), "stddaq up pco.json --allowed-root {} --source simulate --rate 10"),
        (0, ("--allowed-root", "/data"), "stddaq up pco.json --source simulate --rate 10"),
    ],
)
def test_the_next_command_works_as_this_user(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    uid: int,
    arguments: tuple[str, ...],
    expected: str,
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    stddaq(["init", "--detector", "pco", *arguments])
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("try it:"))
    assert line.partition(":")[2].strip() == expected.format(Path.cwd())


def proposals(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """Return the commands that `stddaq init` proposed, by what they do."""
    lines = [
        line
        for line in capsys.readouterr().out.splitlines()
        if re.search(r"^[a-z ]+: +(stddaq|sudo|sed) ", line)
    ]
    return {what: command.strip() for what, _, command in (line.partition(":") for line in lines)}


@pytest.fixture
def small_machine(monkeypatch: pytest.MonkeyPatch) -> int:
    """Return the free shared memory of a machine that has no more memory."""
    free = 16 * 10**9
    monkeypatch.setattr(ring_space, "free_shared_memory", lambda: free)
    monkeypatch.setattr(ring_space, "machine_memory", lambda: free)
    return free


@pytest.mark.parametrize("name", ["gigafrost", "pco", "jungfrau"])
def test_a_ring_buffer_that_does_not_fit_is_made_smaller(
    name: str, small_machine: int, capsys: pytest.CaptureFixture[str]
) -> None:
    stddaq(["init", "--example", name])
    proposed = proposals(capsys)
    assert list(proposed) == ["make it fit", "then try it", "check the server"]
    subprocess.run(["sh", "-c", proposed["make it fit"]], check=True, timeout=30)
    config = DetectorConfig.load(f"{name}.json")
    assert 0.8 * small_machine < ring_space.image_rings_bytes(config) <= 0.9 * small_machine


@pytest.mark.parametrize(
    "arguments", [("--example", "eiger"), ("--detector", "pco", "--size", "46000x46000")]
)
def test_images_that_do_not_fit_are_made_smaller(
    arguments: tuple[str, ...], small_machine: int, capsys: pytest.CaptureFixture[str]
) -> None:
    stddaq(["init", "large.json", *arguments])
    proposed = proposals(capsys)
    # What does not fit is not to be tried.
    assert list(proposed) == ["try smaller ones", "check the server"]
    assert stddaq(shlex.split(proposed["try smaller ones"])[1:]) == 0
    assert "try it" in proposals(capsys)
    assert ring_space.image_rings_bytes(DetectorConfig.load("large-small.json")) <= small_machine


def test_shared_memory_that_may_be_larger_is_enlarged(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ring_space, "free_shared_memory", lambda: 10**9)
    monkeypatch.setattr(ring_space, "machine_memory", lambda: 10**13)
    stddaq(["init", "--detector", "pco"])
    proposed = proposals(capsys)
    assert proposed["make it fit"].startswith("sudo mount -o remount,size=")
    assert proposed["then try it"].startswith("stddaq up pco.json")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--detector", "gigafrost", "--size", "100x100"), "size: expected a width that is a multiple of 24"),
        (("--detector", "gigafrost", "--size", "48x102"), "and a height that is a multiple of 4 for"),
        (("--detector", "eiger", "--size", "100x100"), "size: expected at least one module of eiger"),
        (("--detector", "eiger", "--size", "100"), "expected WIDTHxHEIGHT in pixels"),
        (("--detector", "egier"), "did you mean eiger?"),
        (("--example", "none"), "example: expected one of eiger,"),
        (("--detector", "pco", "--name", "../x"), "detector_name: expected"),
    ],
)
def test_refusals(arguments: tuple[str, ...], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert reason in refusal(capsys, *arguments)
    assert list(Path().iterdir()) == []


def test_without_a_terminal_it_asks_nothing() -> None:
    command = [sys.executable, "-m", "stddaq", "init"]
    done = subprocess.run(
        command, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "or a terminal for questions" in done.stderr


def answer(text: str) -> tuple[int, str]:
    """Return the exit code and the output of `stddaq init` in a terminal in which `text` is typed."""
    terminal, side = pty.openpty()
    try:
        os.write(terminal, text.encode())
        command = [sys.executable, "-m", "stddaq", "init", "asked.json"]
        done = subprocess.run(
            command,
            check=False,
            stdin=side,
            capture_output=True,
            text=True,
            timeout=60,
            start_new_session=True,
        )
    finally:
        os.close(terminal)
        os.close(side)
    return done.returncode, done.stdout + done.stderr


def test_answers_make_a_configuration(tmp_path: Path) -> None:
    code, output = answer(f"egier\neiger\n514x512\n32\nEG1\nmany\n4\n{tmp_path}\n")
    assert code == 0, output
    assert "expected one of gigafrost," in output
    assert "expected an integer from 1 to 1000, got 'many'" in output
    config = DetectorConfig.load("asked.json")
    assert (config.detector_type, config.detector_name, config.bit_depth) == ("eiger", "EG1", 32)
    assert (config.image_shape, config.number_of_writers) == ((512, 514), 4)
    assert config.allowed_roots == [str(tmp_path)]


def test_enter_accepts_the_usual_values() -> None:
    code, output = answer("\n" * 5)
    assert code == 0, output
    content = json.loads(Path("asked.json").read_text())
    assert content["detector_type"] == "gigafrost"
    assert "allowed_roots" not in content


def test_the_end_of_the_input_ends_it() -> None:
    code, output = answer("eiger\n\x04")
    assert code == 2
    assert "standard input: expected an answer, got its end" in output
    assert not Path("asked.json").exists()
