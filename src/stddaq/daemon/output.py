"""Standard output that never blocks: lines that its reader does not take are dropped and counted.

A pipe whose reader has stopped, or a terminal that is paused, must not stop a service.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import stat
import threading
from collections.abc import Callable
from typing import TextIO

# A writable pipe takes this many bytes at once.
_PIPE_BUF = select.PIPE_BUF


def open_closed_streams() -> None:
    """Open /dev/null in place of standard streams that are closed.

    Otherwise the next file or socket would get their descriptor, and receive all output.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest free descriptor is this one.
            os.open(os.devnull, os.O_RDWR)


class LineOutput:
    """Writes lines to a stream without blocking.

    Attributes:
        n_dropped: lines that the stream did not take.
    """

    def __init__(self, stream: TextIO | None) -> None:
        """`stream` is usually `sys.stdout`, which is None when the process was started without one."""
        self.n_dropped = 0
        self._n_reported = 0
        self._stream, self._guard = stream, threading.Lock()
        self._rest = b""
        self._fd = _descriptor(stream)
        self._kind = _kind(self._fd)
        self._own = _reopened(self._fd) if self._kind in ("pipe", "terminal") else None
        # A fork must not inherit the lock from a thread that holds it.
        os.register_at_fork(after_in_child=self._unlock)

    @property
    def is_terminal(self) -> bool:
        """Whether the lines go to a terminal."""
        return self._kind == "terminal"

    @property
    def is_journal(self) -> bool:
        """Whether systemd has connected the stream to its journal. A variable alone may be inherited."""
        if self._fd is None:
            return False
        found = os.fstat(self._fd)
        return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"

    def write(self, line: str, report: Callable[[int], str]) -> None:
        """Write `line`, which has no line break at its end, or drop it.

        `report` returns the line that is written before it when that many lines were dropped.
        """
        with self._guard:
            if self._fd is None:
                self._write_to_stream(line)
                return
            n_new = self.n_dropped - self._n_reported
            if n_new and self._put(report(n_new)):
                self._n_reported = self.n_dropped
            if not self._put(line):
                self.n_dropped += 1

    def _put(self, line: str) -> bool:
        """Return False if no part of `line` was written. A partly written line is completed later."""
        if self._rest:
            self._rest = self._rest[self._send(self._rest) :]
            if self._rest:
                return False
        data = f"{line}\n".encode(errors="backslashreplace")
        n_sent = self._send(data)
        if n_sent:
            self._rest = data[n_sent:]
        return bool(n_sent)

    def _send(self, data: bytes) -> int:
        """Return the number of bytes that were written without waiting."""
        assert self._fd is not None
        n_sent = 0
        with contextlib.suppress(OSError):
            while n_sent < len(data):
                part = data[n_sent : n_sent + _PIPE_BUF]
                if self._own is not None:
                    n_written = os.write(self._own, part)
                elif self._kind == "socket":
                    with socket.socket(fileno=os.dup(self._fd)) as connection:
                        n_written = connection.send(part, socket.MSG_DONTWAIT)
                elif self._kind == "file" or _is_writable(self._fd):
                    n_written = os.write(self._fd, part)
                else:
                    break
                n_sent += n_written
        return n_sent

    def _write_to_stream(self, line: str) -> None:
        """Write to a stream without a descriptor, which is in memory."""
        if self._stream is not None:
            self._stream.write(f"{line}\n")

    def _unlock(self) -> None:
        self._guard = threading.Lock()


def _descriptor(stream: TextIO | None) -> int | None:
    if stream is None:
        return None
    try:
        stream.flush()
        return stream.fileno()
    except (OSError, ValueError, AttributeError):
        return None


def _kind(fd: int | None) -> str:
    if fd is None:
        return "stream"
    mode = os.fstat(fd).st_mode
    if stat.S_ISFIFO(mode):
        return "pipe"
    if stat.S_ISSOCK(mode):
        return "socket"
    return "terminal" if os.isatty(fd) else "file"


def _reopened(fd: int | None) -> int | None:
    """Return a non-blocking descriptor of the same pipe or terminal, without a change of `fd`.

    The flag O_NONBLOCK of `fd` itself is shared with other processes, such as a shell.
    """
    flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        return os.open(f"/proc/self/fd/{fd}", flags)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENXIO):
            return None  # The pipe belongs to another user; `_is_writable` is called before each write.
        raise


def _is_writable(fd: int) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLOUT)
    return bool(poller.poll(0))
