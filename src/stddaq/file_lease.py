"""Whether any process has a file open for writing.

The kernel grants a read lease only on a file that no process can write, whatever user and container that
process belongs to. `/proc` shows neither those of other users nor those of other containers.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import signal


def is_open_for_writing(fd: int) -> bool | None:
    """Return whether a process has the file of `fd`, opened to read, open or mapped for writing.

    None: the kernel does not know, because the file belongs to another user, or its file system has no
    leases. Network file systems know only the processes of this host.
    """
    return _is_refused(fd, fcntl.F_RDLCK)


def is_open_elsewhere(fd: int) -> bool | None:
    """Return whether a process has the file open through another descriptor than `fd`. None: not known."""
    return _is_refused(fd, fcntl.F_WRLCK)


def _is_refused(fd: int, lease: int) -> bool | None:
    try:
        # A process that opens the file meanwhile makes the kernel send a signal: by default SIGIO, which
        # would end this process.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, lease)
    except OSError as error:
        return True if error.errno == errno.EAGAIN else None
    with contextlib.suppress(OSError):
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False
