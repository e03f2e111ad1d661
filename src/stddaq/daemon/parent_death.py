"""Child processes that end with their parent, however it dies."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


def end_with_parent(by: signal.Signals = signal.SIGTERM) -> Callable[[], None]:
    """Return a function for the child that makes the kernel send it the signal `by` when this process dies.

    With SIGTERM, unlike SIGKILL, a service still closes files and removes sockets and segments.
    """
    parent = os.getpid()

    def in_child() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, by)
        if os.getppid() != parent:
            os._exit(1)  # The parent died before the line above.

    return in_child
