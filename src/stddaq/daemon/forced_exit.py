"""The exit of a process that cannot end in order: without clean-up, except that of names in file systems."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from typing import NoReturn

# A file system that does not respond must not delay the exit.
CLEAN_UP_TIMEOUT_S = 0.2

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


def _clean_up() -> None:
    for clean_up in list(_clean_ups):
        with contextlib.suppress(Exception):
            clean_up()
