"""The lines of all services in one stream, each after the name of its service.

On a terminal they are made for people: the time instead of the front of the line, the colour of the level,
no statistics, and no line is broken within a word.
"""

from __future__ import annotations

import os
import re
import textwrap
import time
from collections.abc import Sequence

from stddaq.daemon.output import LineOutput
from stddaq.text import escaped

_OWN_NAME = "stddaq"
_COLOURS = ("36", "32", "33", "35", "34", "96", "92", "93", "95", "94")
_BOLD = "1"
_LEVEL_COLOURS = {"debug": "2", "warning": "33", "error": "31", "critical": "1;31"}
_FRONT = re.compile(
    r"\[(?P<day>\d\d-\d\d) (?P<time>\d\d:\d\d:\d\d)\.\d{3}\]\[[^\]]+\]\[v[^\]]+\]\[(?P<level>\w+)\] "
    r"(?:\[event\] )?(?P<message>.*)",
    re.DOTALL,
)
# Statistics, in both forms: they are many, also when nothing happens.
_STATISTICS = re.compile(r"(\[[^\]]*\]){4} detector=\S+ \d+$|std(_\w+|daq\\ \w+),detector=")
# A terminal that is narrower breaks the lines itself.
_MIN_TEXT_WIDTH = 20


class ServiceOutput:
    """Writes lines without blocking; on a terminal each service has a colour."""

    def __init__(self, output: LineOutput, *, is_plain: bool = False) -> None:
        """`is_plain`: write the lines as the services do, without their names."""
        self._output, self._is_plain = output, is_plain
        self._is_for_people = output.is_terminal and not is_plain
        self._names: tuple[str, ...] = ()
        self._width = len(_OWN_NAME)
        self._day = ""

    def set_names(self, names: Sequence[str]) -> None:
        """Align the lines for these services."""
        self._names = tuple(names)
        self._width = max(map(len, names), default=len(_OWN_NAME))

    def write(self, name: str, line: str) -> None:
        """Write a line of a service."""
        if self._is_plain:
            self._output.write(escaped(line), self._dropped)
            return
        position = self._names.index(name) if name in self._names else 0
        shown = self._coloured(name.ljust(self._width), _COLOURS[position % len(_COLOURS)])
        if self._is_for_people:
            if not _STATISTICS.match(line):
                self._write_for_people(shown, line)
        else:
            self._write(shown, escaped(line))

    def _write_for_people(self, name: str, line: str) -> None:
        found = _FRONT.fullmatch(line)
        if found is None:
            self._write(name, escaped(line))
            return
        if found["day"] != self._day:
            self._day = found["day"]
            self.say(time.strftime(f"%Y-{self._day}, times are UTC%z"))
        colour = _LEVEL_COLOURS.get(found["level"])
        lines = self._broken(escaped(found["message"]), len(found["time"]) + 1)
        text = "\n".join(self._coloured(part, colour) if colour else part for part in lines)
        self._write(name, f"{found['time']} {text}")

    def _broken(self, text: str, indent: int) -> list[str]:
        """Return the lines of a text beside the names and an indent."""
        front = self._width + len(" | ") + indent
        width = max(_MIN_TEXT_WIDTH, _terminal_width() - front)
        lines = textwrap.wrap(text, width, break_on_hyphens=False) or [""]
        return [lines[0], *(" " * front + line for line in lines[1:])]

    def say(self, message: str) -> None:
        """Write a line of the supervisor itself."""
        self._write(
            self._coloured(_OWN_NAME.ljust(self._width), _BOLD), self._coloured(escaped(message), _BOLD)
        )

    def _coloured(self, text: str, colour: str) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if self._output.is_terminal else text

    def _write(self, name: str, line: str) -> None:
        self._output.write(f"{name} | {line}", self._dropped)

    def _dropped(self, n_dropped: int) -> str:
        name = _OWN_NAME.ljust(self._width)
        return f"{name} | {n_dropped} lines were dropped because the output was not read"


def _terminal_width() -> int:
    try:
        return os.get_terminal_size(1).columns or 80
    except OSError:
        return 80
