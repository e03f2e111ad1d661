"""Child processes that end with their parent, however it dies."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1


def end_with_parent(by: signal.Signals = signal.SIGTERM) -> Callable[[], None]:
    """Return a function for the child that makes the kernel send it the signal `by` when this process dies.

    With SIGTERM, unlike SIGKILL, a service still closes files and removes sockets and segments.
    """
    # A child of a program with threads must not import: one of them may have held a lock at the fork.
    import ctypes  # noqa: F401

    parent = os.getpid()
    return lambda: end_with(parent, by)


def end_with(parent: int, by: signal.Signals) -> None:
    """Let the kernel send this process the signal `by` when its parent dies, whose process id is `parent`."""
    # Not at the top: only children need it.
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, by)
    if os.getppid() != parent:
        os._exit(1)  # The parent died before the line above.
