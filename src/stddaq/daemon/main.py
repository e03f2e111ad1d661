"""Start and end of a daemon: arguments, configuration, signals, exit code.

A service returns from `serve` what the next process needs if a library has failed in this one.

The exit code is 0 after SIGTERM, SIGINT or SIGHUP and when all work is done. It is 2 if the configuration, an
argument or the state of the machine prevents the start; one line on standard error then says why. It is 70
if a thread has failed.
A later `OSError` is a defect, or a failure of the machine, and leaves a traceback.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import NoReturn

from stddaq.config import DetectorConfig
from stddaq.daemon import log
from stddaq.daemon.arguments import ArgumentParser, refuse
from stddaq.daemon.config_loading import load_in_fork
from stddaq.daemon.end_watch import EndWatch
from stddaq.daemon.forced_exit import exit_when_a_thread_fails
from stddaq.daemon.metrics_page import published_pages
from stddaq.daemon.output import open_closed_streams
from stddaq.daemon.replacement import HandedOver, replace_process
from stddaq.daemon.service_manager import service_manager
from stddaq.errors import ConfigError, StdDaqError
from stddaq.text import mismatch, os_error_text

MAX_DESCRIPTORS = 65536
# A service with many writers or clients needs more, but libzmq aborts the process with fewer than this.
MIN_DESCRIPTORS = 128
POLL_PERIOD_S = 0.02
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class StopRequest:
    """SIGTERM, SIGINT and SIGHUP as a flag, and as a file descriptor that becomes readable.

    A loop registers the descriptor with its poller and calls `poll` before each wait, in the main thread.

    Attributes:
        requested: a signal has asked the daemon to end.
    """

    def __init__(self) -> None:
        self.requested = False
        # Unlike those of a pipe, its bytes can be read without taking them away.
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._read, self._write = self._reader.fileno(), self._writer.fileno()
        self._wakes_before: int | None = None
        self._ends_wait = False

    def poll(self) -> bool:
        """Return `requested`; while it is false, empty the descriptor, because other signals fill it too.

        Takes 1.5 us.
        """
        if not self.requested:
            with contextlib.suppress(BlockingIOError):
                os.read(self._read, 4096)
        return self.requested

    def catch_signals(self) -> None:
        """Make the stop signals call `request` until `close`; `nohup` keeps SIGHUP ignored."""
        # Python runs handlers only between two of its instructions, so that of a signal which arrives just
        # before a wait would run after it. The wake-up descriptor is written to at once.
        self._wakes_before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in STOP_SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self.request)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def fileno(self) -> int:
        return self._read

    def wait_for_signal(self) -> bool:
        """Wait in another thread, even if the main thread is blocked, until a stop signal has arrived.

        Return False after `end_wait_for_signal` or `close` without one.
        """
        poller = select.poll()
        poller.register(self._read, select.POLLIN)
        while not (self.requested or self._ends_wait):
            poller.poll()
            try:
                received = self._reader.recv(4096, socket.MSG_PEEK)
            except BlockingIOError:
                continue  # The main thread has emptied it.
            except OSError:
                break
            # The bytes are numbers of signals. Others than these are still to be handled.
            if not received or any(number in STOP_SIGNALS for number in received):
                return self.requested or bool(received)
            time.sleep(POLL_PERIOD_S)
        return self.requested

    def end_wait_for_signal(self) -> None:
        """Make `wait_for_signal` return."""
        self._ends_wait = True
        with contextlib.suppress(BlockingIOError):
            os.write(self._write, b"\0")

    def request(self, _signal: int = 0, _frame: FrameType | None = None) -> None:
        """Ask the daemon to end. This is a signal handler; any thread may call it."""
        self.requested = True
        with contextlib.suppress(BlockingIOError):  # The descriptor is full, and so readable.
            os.write(self._write, b"x")
        service_manager.stopping()

    def close(self) -> None:
        """Close the file descriptor. Signals must have other handlers by then."""
        if self._wakes_before is not None:
            signal.set_wakeup_fd(self._wakes_before)
        self._writer.close()
        self._reader.close()


def raise_descriptor_limit() -> None:
    """Raise the limit of descriptors as far as allowed, because libzmq aborts a process without any left.

    Raise `ConfigError` when these are too few.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    if soft != resource.RLIM_INFINITY and soft < MIN_DESCRIPTORS:
        raise ConfigError(
            mismatch("limit of open files (ulimit -Hn)", f"{MIN_DESCRIPTORS} or more", f"{soft}")
        )


@contextlib.contextmanager
def refused_start(program: str) -> Iterator[None]:
    """Exit with code 2 and one line when a daemon cannot start; see the module."""
    try:
        yield
    except StdDaqError as error:
        refuse(program, error)
    except OSError as error:
        if log.is_ready():
            raise
        refuse(program, os_error_text(error))


def _leave(stop: StopRequest, watch: EndWatch, handed_over: HandedOver) -> NoReturn:
    """End this process without any clean-up of the library that has failed in it."""
    watch.end()
    if not stop.requested:
        replace_process(handed_over, STOP_SIGNALS)
    sys.stdout.flush()
    os._exit(0)


Serve = Callable[[DetectorConfig, argparse.Namespace, StopRequest], HandedOver | None]


def run(
    parser: ArgumentParser, serve: Serve, argv: Sequence[str] | None = None, *, closes_nothing: bool = False
) -> int:
    """Run a daemon: parse, load the configuration, log, catch signals, serve until asked to stop.

    `closes_nothing`: no file or image needs an orderly end, so that it may be cut short.
    """
    open_closed_streams()
    args = parser.parse_args(argv)
    program = parser.prog
    # It takes 0.1 MB of memory, which the service can use.
    del parser
    with refused_start(program):
        _run(program, serve, args, closes_nothing)
    return 0


def _run(program: str, serve: Serve, args: argparse.Namespace, closes_nothing: bool) -> None:
    raise_descriptor_limit()
    stop = StopRequest()
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        config = load_in_fork(args.detector_json_filename)
        log.set_up(program, config.log_level, config.statistics_format)
        stop.catch_signals()
        watch = EndWatch(stop, STOP_SIGNALS, has_limit=closes_nothing)
        with published_pages({config.detector_name: config.etag}), exit_when_a_thread_fails():
            handed_over = serve(config, args, stop)
        if handed_over is not None:
            _leave(stop, watch, handed_over)
        if not log.is_ready():
            # For systemd, an end before the start is complete would be a failure.
            service_manager.ready("nothing to do with this configuration")
        service_manager.stopping()
        # The interpreter removes signal handlers before it exits; a signal then would change the exit code.
        handlers = dict.fromkeys(handlers, signal.SIG_IGN)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        stop.close()
