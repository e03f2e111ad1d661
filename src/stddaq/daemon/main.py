"""How a daemon begins and ends: arguments, configuration, signals, exit code.

Exit codes: 0 after SIGTERM or SIGINT and when there is nothing to do, 2 when the configuration, an argument
or the machine's state does not allow to start: then one line on standard error says what, where and what
is allowed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import NoReturn

from stddaq import __version__
from stddaq.config import DetectorConfig
from stddaq.daemon import log
from stddaq.errors import StdDaqError

REFUSED = 2
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class ArgumentParser(argparse.ArgumentParser):
    """argparse, with the daemons' common arguments, and errors of one line."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False)
        self.add_argument("--version", action="version", version=__version__)

    def add_config(self) -> None:
        """The configuration file, first positional argument of every service."""
        self.add_argument("detector_json_filename", help="path to configuration file")

    def add_source_suffix(self, help: str) -> None:
        """`-s`: which metadata stream or ring buffer."""
        self.add_argument("-s", "--source_suffix", default="image", type=suffix, metavar="SUFFIX", help=help)

    def error(self, message: str) -> NoReturn:
        refuse(self.prog, f"{message} (see {self.prog} --help)")


def suffix(text: str) -> str:
    """Argument type of `-s`: becomes part of socket and segment names."""
    if not text or not all(c.isascii() and (c.isalnum() or c in "._-") for c in text):
        raise argparse.ArgumentTypeError(f"found {text!r}, allowed are letters, digits, '.', '_' and '-'")
    return text


def port_number(text: str) -> int:
    """Argument type of a TCP port; 0 lets the system choose one."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"found {text!r}, allowed is a port from 0 to 65535")
    return int(text)


def refuse(service: str, reason: object) -> NoReturn:
    """Leave with exit code 2 and one line on standard error."""
    print(f"{service}: error: {' '.join(str(reason).split())}", file=sys.stderr)
    raise SystemExit(REFUSED)


class StopRequest:
    """SIGTERM and SIGINT as a flag, and as a file descriptor that becomes readable, for pollers.

    A loop calls `poll` before each wait, in the main thread.

    Attributes:
        requested: a signal has asked the daemon to end.
    """

    def __init__(self) -> None:
        self.requested = False
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wakes_before: int | None = None

    def poll(self) -> bool:
        """Return `requested`; until then, empty the descriptor, which every other signal fills too.

        Takes 1.5 us.
        """
        if not self.requested:
            with contextlib.suppress(BlockingIOError):
                os.read(self._read, 4096)
        return self.requested

    def catch_signals(self) -> None:
        """Let SIGTERM and SIGINT ask, from now on until `close`."""
        # Python calls handlers between two of its instructions only. A signal that comes when the main thread
        # is about to wait would be handled after the wait; the descriptor is written to at once.
        self._wakes_before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in STOP_SIGNALS:
            signal.signal(number, self.request)

    def fileno(self) -> int:
        return self._read

    def request(self, _signal: int = 0, _frame: FrameType | None = None) -> None:
        """Ask the daemon to end. A signal handler; may be called from any thread."""
        self.requested = True
        with contextlib.suppress(BlockingIOError):  # Full of requests already.
            os.write(self._write, b"x")

    def close(self) -> None:
        """Close the file descriptor; no signal may ask any more."""
        if self._wakes_before is not None:
            signal.set_wakeup_fd(self._wakes_before)
        os.close(self._read)
        os.close(self._write)


Serve = Callable[[DetectorConfig, argparse.Namespace, StopRequest], None]


def run(parser: ArgumentParser, serve: Serve, argv: Sequence[str] | None = None) -> int:
    """Run a daemon: parse, load the configuration, log, catch signals, serve until asked to stop."""
    args = parser.parse_args(argv)
    stop = StopRequest()
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        config = DetectorConfig.load(args.detector_json_filename)
        log.set_up(parser.prog, config.log_level, config.statistics_format)
        stop.catch_signals()
        serve(config, args, stop)
        # The interpreter takes down our handlers before it ends; a signal then would be another exit code.
        handlers = dict.fromkeys(handlers, signal.SIG_IGN)
    except StdDaqError as error:
        refuse(parser.prog, error)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        stop.close()
    return 0
