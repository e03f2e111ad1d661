"""The lines of services as `stddaq up` shows them, in a terminal and elsewhere."""

from __future__ import annotations

import os
import pty
import re
import select
import struct
import termios
from collections.abc import Callable, Iterator
from fcntl import ioctl
from pathlib import Path

import pytest

from stddaq.cli.supervisor import output
from stddaq.cli.supervisor.output import ServiceOutput
from stddaq.daemon.output import LineOutput

FRONT = "[11-20 20:43:07.412][std_det_driver][v0.1.0]"
STATISTICS = f"{FRONT}[info] detector=GF2,source=image,processed_times=0 13384997578250107"
INFLUXDB = "std_det_driver,detector=GF2,source=image processed_times=0i 1795622400000000000"
COLOURS = re.compile(r"\x1b\[[\d;]*m")
Lines = Callable[[], str]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[ServiceOutput, Lines]]:
    """Return an output to a terminal of 60 columns, and a function that returns all that it shows."""
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    monkeypatch.setattr(output, "_terminal_width", lambda: os.get_terminal_size(theirs).columns)
    with os.fdopen(theirs, "w") as stream:
        shown = ServiceOutput(LineOutput(stream))
        shown.set_names(["driver", "writer 0"])

        def lines() -> str:
            # What was written arrives a little later.
            shown.say("END")
            text = b""
            while b"END" not in text:
                assert select.select([ours], [], [], 20)[0], text
                text += os.read(ours, 65536)
            return text.decode().replace("\r\n", "\n").rpartition("\x1b[1mstddaq")[0]

        yield shown, lines
    os.close(ours)


def test_a_terminal_shows_the_day_once_and_then_times_and_messages(
    terminal: tuple[ServiceOutput, Lines],
) -> None:
    shown, lines = terminal
    shown.write("driver", f"{FRONT}[info] [event] ready: listening on ws://127.0.0.1:8080")
    shown.write("writer 0", f"{FRONT}[info] [event] file created")
    day, *rest = COLOURS.sub("", lines()).splitlines()
    assert re.fullmatch(r"stddaq   \| \d{4}-11-20, times are UTC[+-]\d{4}", day)
    assert rest == [
        "driver   | 20:43:07 ready: listening on ws://127.0.0.1:8080",
        "writer 0 | 20:43:07 file created",
    ]


def test_a_terminal_shows_no_statistics_and_levels_by_colour(terminal: tuple[ServiceOutput, Lines]) -> None:
    shown, lines = terminal
    for line in (STATISTICS, INFLUXDB, f"{FRONT}[warning] slow", f"{FRONT}[error] failed", "Traceback"):
        shown.write("driver", line)
    text = lines()
    assert "processed_times" not in text
    assert "\x1b[33mslow\x1b[0m" in text
    assert "\x1b[31mfailed\x1b[0m" in text
    assert COLOURS.sub("", text).endswith("driver   | Traceback\n")


def test_a_long_message_is_broken_between_words(terminal: tuple[ServiceOutput, Lines]) -> None:
    shown, lines = terminal
    message = "images 11-20: not received without part 1, and others were not received at all"
    shown.write("driver", f"{FRONT}[info] {message}")
    _, *rest = COLOURS.sub("", lines()).splitlines()
    assert len(rest) == 2
    assert all(len(line) <= 60 for line in rest)
    assert rest[1].startswith(" " * 20)
    assert " ".join(line[20:] for line in rest) == message


@pytest.mark.parametrize("line", [STATISTICS, INFLUXDB, f"{FRONT}[info] [event] ready"])
def test_a_file_has_whole_lines_with_names_or_plain_ones(line: str, tmp_path: Path) -> None:
    for is_plain, expected in ((False, f"driver | {line}\n"), (True, f"{line}\n")):
        path = tmp_path / "log"
        with path.open("w") as stream:
            shown = ServiceOutput(LineOutput(stream), is_plain=is_plain)
            shown.set_names(["driver"])
            shown.write("driver", line)
        assert path.read_text() == expected
