"""The end of a daemon whose main thread is blocked, as in a write to storage that does not respond.

The main thread ends the daemon: it closes files and removes sockets. It cannot when it waits in a system call
that does not return. Then a thread ends the process without it. A main thread that still does something, as
closing a large file on slow storage, is left alone.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from stddaq.daemon import log

if TYPE_CHECKING:
    from stddaq.daemon.main import StopRequest

# The longest wait of an orderly end is shorter, and a daemon ends within 2 s of a signal.
BLOCKED_S = 1.4
PERIOD_S = 0.1


def watch_end(stop: StopRequest) -> None:
    """Start the thread. It ends with `stop`, unless a signal arrives before."""
    threading.Thread(target=_watch, args=(stop,), name="end watch", daemon=True).start()


def _watch(stop: StopRequest) -> None:
    if not stop.wait_for_signal():
        return
    main_thread = threading.main_thread().native_id
    before, blocked_s, sampled_at = None, 0.0, time.monotonic()
    while blocked_s < BLOCKED_S:
        time.sleep(PERIOD_S)
        try:
            activity = _activity(Path(f"/proc/self/task/{main_thread}"))
        except OSError:
            return  # The thread has ended.
        now = time.monotonic()
        # A process that was suspended has not been blocked for all of that time.
        blocked_s = blocked_s + min(now - sampled_at, 2 * PERIOD_S) if activity == before else 0.0
        before, sampled_at = activity, now
    log.logger.warning("blocked for %.1f s after a signal to end: exiting; files may be unclosed", BLOCKED_S)
    os._exit(0)


def _activity(thread: Path) -> object:
    """Return what changes whenever the thread runs, and differs from all before while it is ready to run."""
    if (thread / "stat").read_text().rpartition(")")[2].split()[0] == "R":
        return object()
    return [line for line in (thread / "status").read_text().splitlines() if "ctxt_switches" in line]
