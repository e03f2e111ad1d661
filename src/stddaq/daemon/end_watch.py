"""The end of a daemon whose main thread is blocked, as in a write to storage that does not respond.

The main thread ends the daemon: it closes files and removes sockets. It cannot when it waits in a system call
that does not return. Then a thread ends the process without it. A main thread that still does something, as
closing a large file on slow storage, is left alone. A daemon that has nothing to close has a limit instead: a
main thread of low priority, or one in a library that does not return, may never come to its end.

Stop signals are blocked in the main thread and delivered to this one, because the kernel does not run the
handler in a thread that waits uninterruptibly.
"""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from stddaq.daemon import log
from stddaq.daemon.forced_exit import exit_now

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stddaq.daemon.main import StopRequest

# The longest wait of an orderly end is shorter, and a daemon ends within 2 s of a signal.
BLOCKED_S = 1.4
PERIOD_S = 0.1
JOIN_TIMEOUT_S = 1.0


class EndWatch:
    """The thread that watches the end of this process."""

    def __init__(
        self, stop: StopRequest, signals: Sequence[signal.Signals], *, has_limit: bool = False
    ) -> None:
        """Start the thread in the main thread, and deliver `signals` to it.

        `has_limit`: end a main thread that still does something, too.
        """
        self._stop, self._signals, self._has_limit = stop, signals, has_limit
        self._thread = threading.Thread(target=self._run, name="end watch", daemon=True)
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        self._thread.start()

    def end(self) -> None:
        """End the thread, unless a signal has arrived. Later ones stay blocked."""
        self._stop.end_wait_for_signal()
        if not self._stop.requested:
            self._thread.join(JOIN_TIMEOUT_S)

    def _run(self) -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._signals)
        if self._stop.wait_for_signal():
            _watch(self._has_limit)
        signal.pthread_sigmask(signal.SIG_BLOCK, self._signals)


def _watch(has_limit: bool) -> None:
    """Wait until the main thread is blocked, and exit. The end of the process ends the wait."""
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
        passed_s = min(now - sampled_at, 2 * PERIOD_S)
        blocked_s = blocked_s + passed_s if has_limit or activity == before else 0.0
        before, sampled_at = activity, now
    reason = "not ended" if has_limit else "blocked"
    advice = "" if has_limit else "; files may be unclosed"
    log.logger.warning("%s for %.1f s after a signal to end: exiting%s", reason, BLOCKED_S, advice)
    exit_now(0)


def _activity(thread: Path) -> object:
    """Return what changes whenever the thread runs, and differs from all before while it is ready to run."""
    if (thread / "stat").read_text().rpartition(")")[2].split()[0] == "R":
        return object()
    return [line for line in (thread / "status").read_text().splitlines() if "ctxt_switches" in line]
