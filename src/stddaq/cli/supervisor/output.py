"""The lines of all services in one stream, each after the name of its service."""

from __future__ import annotations

from collections.abc import Sequence

from stddaq.daemon.output import LineOutput
from stddaq.text import escaped

_OWN_NAME = "stddaq"
_COLOURS = ("36", "32", "33", "35", "34", "96", "92", "93", "95", "94")
_BOLD = "1"


class ServiceOutput:
    """Writes lines without blocking; on a terminal each service has a colour."""

    def __init__(self, output: LineOutput) -> None:
        self._output = output
        self._names: tuple[str, ...] = ()
        self._width = len(_OWN_NAME)

    def set_names(self, names: Sequence[str]) -> None:
        """Align the lines for these services."""
        self._names = tuple(names)
        self._width = max(map(len, names), default=len(_OWN_NAME))

    def write(self, name: str, line: str) -> None:
        """Write a line of a service."""
        position = self._names.index(name) if name in self._names else 0
        self._write(
            self._coloured(name.ljust(self._width), _COLOURS[position % len(_COLOURS)]), escaped(line)
        )

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
