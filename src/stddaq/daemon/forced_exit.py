"""The exit of a process that cannot end in order: without clean-up, except that of names in file systems.

That is also the exit of a service of which a thread has failed. It would run on, and do a part of its work no
more, in silence; systemd or `stddaq up` start it again.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from typing import NoReturn

from stddaq.daemon import log

# A file system that does not respond must not delay the exit.
CLEAN_UP_TIMEOUT_S = 0.2
# EX_SOFTWARE of sysexits.h.
CRASHED = 70

_clean_ups: list[Callable[[], None]] = []


def before_forced_exit(clean_up: Callable[[], None]) -> Callable[[], None]:
    """Have `clean_up` called before `exit_now`, in another thread. Return a function that revokes this."""
    _clean_ups.append(clean_up)

    def revoke() -> None:
        with contextlib.suppress(ValueError):
            _clean_ups.remove(clean_up)

    return revoke


def exit_now(code: int) -> NoReturn:
    """End this process without waiting for its threads."""
    thread = threading.Thread(target=_clean_up, name="clean-up", daemon=True)
    thread.start()
    thread.join(CLEAN_UP_TIMEOUT_S)
    os._exit(code)


@contextlib.contextmanager
def exit_when_a_thread_fails() -> Iterator[None]:
    """Exit with code 70 and a traceback as soon as a thread of this process ends by an exception."""
    before = threading.excepthook

    def fail(failure: threading.ExceptHookArgs) -> None:
        thread, error = failure.thread, failure.exc_value
        name = thread.name if thread else "unknown"
        log.logger.error("the thread %s failed unexpectedly: the service exits", name, exc_info=error)
        exit_now(CRASHED)

    threading.excepthook = fail
    try:
        yield
    finally:
        threading.excepthook = before


def _clean_up() -> None:
    for clean_up in list(_clean_ups):
        with contextlib.suppress(Exception):
            clean_up()
