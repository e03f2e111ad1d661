"""The server that `stddaq doctor` checks, and what a check finds."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stddaq.errors import StdDaqError

COMMAND_TIMEOUT_S = 10.0
# Ordinary users of Debian have no sbin in their PATH.
SYSTEM_PROGRAMS = "/usr/sbin:/sbin"

State = Literal["ok", "advice", "missing"]


class CommandError(StdDaqError, RuntimeError):
    """A program that shows settings is not installed, or failed."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check.

    Attributes:
        state: `advice`: it works, but may be slow or lose images; `missing`: services will fail.
        cure: a shell command that mends it, mostly for root; empty if no command does.
        is_for_all: the cure is right on every server. `stddaq doctor --mend` runs no others.
    """

    name: str
    state: State
    found: str
    expected: str = ""
    cure: str = ""
    is_for_all: bool = True


@dataclass(frozen=True, slots=True)
class Server:
    """The machine to check.

    Attributes:
        uid: the user that the services run as.
        root: directory of the file system, for tests.
        interface: of the network, to which the detector sends; empty if it is not known.
    """

    uid: int
    root: Path = Path("/")
    interface: str = ""

    def text(self, path: str) -> str | None:
        """Return a file of the system without white space around it; None if there is none."""
        try:
            return (self.root / path).read_text().strip()
        except OSError:
            return None  # Of a network card that is down, some cannot be read.

    def number(self, path: str) -> int | None:
        """Return the number in a file of the system; None if there is none."""
        text = self.text(path)
        return int(text) if text is not None and text.isdecimal() else None

    def shown_by(self, program: str, *arguments: str) -> str:
        """Return what a program of the system prints. Raise `CommandError` with its reason."""
        path = shutil.which(program, path=f"{os.environ.get('PATH', '')}:{SYSTEM_PROGRAMS}")
        if path is None:
            raise CommandError(f"{program} is not installed")
        try:
            done = subprocess.run(
                [path, *arguments], check=False, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise CommandError(f"{program}: {error}") from error
        if done.returncode:
            raise CommandError(" ".join(done.stderr.split()) or f"{program} failed")
        return done.stdout
