"""The command lines of all programs: a parser with one-line errors, and the types of arguments.

Every wrong argument ends the program with exit code 2 and one line on standard error. Imports nothing that
is slow, so that `--help` is quick.
"""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import math
import os
import re
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

from stddaq import __version__
from stddaq.text import escaped, mismatch
from stddaq.wire.default_addresses import DEFAULT_URL, URL_VARIABLE

REFUSED = 2
MAX_SECONDS = 1e6


def refuse(program: str, reason: object, code: int = REFUSED) -> NoReturn:
    """Exit with code 2, or `code`, and one line on standard error."""
    print(f"{program}: error: {escaped(' '.join(str(reason).split()))}", file=sys.stderr)
    raise SystemExit(code)


class ArgumentParser(argparse.ArgumentParser):
    """An `argparse` parser with `--version`, the arguments that services share, and one-line errors."""

    def __init__(
        self, prog: str, description: str | None = None, *, add_version: bool = True, **options: Any
    ) -> None:
        options.setdefault("formatter_class", _HelpFormatter)
        super().__init__(prog=prog, description=description, allow_abbrev=False, **options)
        if add_version:
            self.add_argument("--version", action="version", version=__version__)

    def add_config(self) -> None:
        """Add the configuration file, the first positional argument of every service."""
        self.add_argument("detector_json_filename", help="path to configuration file")

    def add_link_sets(self) -> None:
        """Add `--link-sets` of a GigaFRoST."""
        self.add_argument(
            "--link-sets",
            type=int,
            choices=(1, 2),
            default=1,
            help="with 2, every second image of a GigaFRoST goes to receivers 8 to 15 (default: 1)",
        )

    def add_source_suffix(self, help: str) -> None:
        """Add `-s`, which selects a metadata stream or ring buffer."""
        self.add_argument("-s", "--source_suffix", default="image", type=suffix, metavar="SUFFIX", help=help)

    def add_driver_url(self) -> None:
        """Add `--url` of the driver."""
        self.add_argument(
            "--url",
            default=os.environ.get(URL_VARIABLE) or DEFAULT_URL,
            metavar="URL",
            help=f"the driver (default: {URL_VARIABLE} of the environment, or {DEFAULT_URL})",
        )

    def add_timeout(self, awaited: str, default_s: float) -> None:
        """Add `--timeout` of a synchroniser, the longest wait for `awaited`."""
        self.add_argument(
            "--timeout",
            type=Seconds(),
            default=default_s,
            metavar="SECONDS",
            help=f"longest wait for {awaited} (default: {default_s:g})",
        )

    def add_announce_incomplete(self, incomplete: str, zeros: str = "zeros") -> None:
        """Add `--announce-incomplete` of a synchroniser."""
        self.add_argument(
            "--announce-incomplete",
            action="store_true",
            help=f"announce images {incomplete}, with {zeros} and status missing_packets "
            "(default: they are left out)",
        )

    # The overloads of typeshed cannot be repeated here.
    def parse_known_args(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, args: Any = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """Parse as argparse does, but refuse an option in the other spelling with its right name."""
        given = list(sys.argv[1:] if args is None else args)
        if misspelt := self._misspelt_option(given):
            self.error(mismatch("option", *misspelt))
        return super().parse_known_args(given, namespace)

    def _misspelt_option(self, args: Sequence[str]) -> tuple[str, str] | None:
        """Return (right, given) of an option with underscores for hyphens or the reverse."""
        options = {name.replace("_", "-"): name for name in self._option_string_actions}
        for argument in args:
            if argument == "--":
                return None
            given = argument.partition("=")[0]
            if not given.startswith("--") or given in self._option_string_actions:
                continue
            if right := options.get(given.replace("_", "-")):
                return right, given
        return None

    def error(self, message: str) -> NoReturn:
        if wrong := re.search(r"invalid choice: '([^']+)'|unrecognized arguments: (--[^\s=]+)", message):
            message += _did_you_mean(wrong[1] or wrong[2], self._words())
        refuse(self.prog, f"{message} (see {self.prog} --help)")

    def _words(self) -> set[str]:
        """Return the options and commands of this parser, and the options of its commands."""
        words = set(self._option_string_actions)
        for action in self._actions:
            choices = action.choices or ()
            words.update(map(str, choices))
            if isinstance(choices, dict):
                words.update(*(parser._option_string_actions for parser in choices.values()))
        return words


class _HelpFormatter(argparse.HelpFormatter):
    """Has the width of the terminal, like its base class.

    That imports shutil for it, with the libraries of compression, 0.3 MB of memory of each service.
    """

    def __init__(self, prog: str, **options: Any) -> None:
        columns = os.environ.get("COLUMNS", "")
        width = int(columns) if columns.isdecimal() else 0
        with contextlib.suppress(OSError):
            width = width or os.get_terminal_size(1).columns
        super().__init__(prog, width=(width or 80) - 2, **options)


def _did_you_mean(word: str, known: Collection[str]) -> str:
    import difflib

    # An option of another command is not misspelt.
    close = [] if word in known else difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def suffix(text: str) -> str:
    """Argument type of a suffix of socket and segment names."""
    if not re.fullmatch(r"[A-Za-z0-9._-]+", text):
        raise _error("letters, digits, '.', '_' and '-'", text)
    return text


class IntegerRange:
    """Argument type of a decimal integer from `lowest` to `highest`."""

    def __init__(self, lowest: int, highest: int) -> None:
        self._lowest, self._highest = lowest, highest

    def __call__(self, text: str) -> int:
        # int() refuses thousands of digits with an error of its own.
        is_number = text.isascii() and text.isdecimal() and len(text) <= 100
        if not is_number or not self._lowest <= int(text) <= self._highest:
            raise _error(f"an integer from {self._lowest} to {self._highest}", text)
        return int(text)


class NumberRange:
    """Argument type of a number from `lowest` to `highest`, both in `unit`."""

    def __init__(self, lowest: float, highest: float, unit: str) -> None:
        self._lowest, self._highest, self._unit = lowest, highest, unit

    def __call__(self, text: str) -> float:
        value = _number(text)
        if not self._lowest <= value <= self._highest:
            raise _error(f"a number of {self._unit} from {self._lowest:g} to {self._highest:g}", text)
        return value


class Seconds:
    """Argument type of a time in seconds, above 0 and up to `highest`."""

    def __init__(self, highest: float = MAX_SECONDS) -> None:
        self._highest = highest

    def __call__(self, text: str) -> float:
        value = _number(text)
        if not 0 < value <= self._highest:
            raise _error(f"a number of seconds above 0, up to {self._highest:g}", text)
        return value


port_number = IntegerRange(0, 65535)
image_count = IntegerRange(1, 2**62)
writer_number = IntegerRange(0, 2**31 - 1)
thread_count = IntegerRange(1, 1024)
compression_level = IntegerRange(0, 9)


def bitshuffle_block(text: str) -> int:
    """Argument type of the pixels of a bitshuffle block; 0 is the default block."""
    if not (text.isascii() and text.isdecimal() and len(text) <= 100) or int(text) % 8:
        raise _error("a multiple of 8, or 0", text)
    return int(text)


def existing_directory(text: str) -> Path:
    """Argument type of a directory."""
    path = Path(text)
    try:
        found = path.is_dir()
    except OSError as error:
        raise _error("a directory that this user can see", text, error.strerror) from error
    if not found:
        raise _error("an existing directory", text)
    return path


def web_address(text: str) -> str:
    """Argument type of the address of a web page."""
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or not text.isprintable():
        raise _error("an address that starts with http:// or https://", text)
    return text


def ipv4_address(text: str) -> str:
    """Parse an IPv4 address. Names are refused: each packet sent to one would look it up."""
    try:
        return str(ipaddress.IPv4Address(text))
    except ValueError:
        raise _error("an IPv4 address", text) from None


def user_id(text: str) -> int:
    """Argument type of a user: a name of this system, or a uid."""
    if text.isascii() and text.isdecimal():
        return writer_number(text)
    import pwd

    try:
        return pwd.getpwnam(text).pw_uid
    except (KeyError, ValueError):
        raise _error("a user of this system or a uid", text) from None


def stream_address(text: str) -> str:
    """Argument type of `tcp://HOST:PORT` or `ipc://PATH`."""
    match = re.fullmatch(r"tcp://[^\s:/][^\s/]*:(\d{1,5})|ipc://\S+", text, re.ASCII)
    if match is None or int(match[1] or 1) > 65535:
        raise _error("tcp://HOST:PORT or ipc://PATH", text)
    return text


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _error(expected: str, text: str, why: str | None = None) -> argparse.ArgumentTypeError:
    """Return the error of a wrong value, which argparse completes with the name of the argument."""
    return argparse.ArgumentTypeError(f"expected {expected}, got {text!r}" + (f" ({why})" if why else ""))
