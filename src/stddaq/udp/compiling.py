"""Functions that numba compiles (the extra `udp`), and the cache of their code.

The code is kept on disk: beside the file of the function, in the user's cache directory, or where
NUMBA_CACHE_DIR says. Where no directory is writable, each start compiles again, which takes seconds.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba

# The compiler takes some seconds.
COMPILE_TIMEOUT_S = 60.0


def compiled(function: Callable[..., Any]) -> Any:
    """Return a function compiled at its first call, or loaded from the cache. It releases the GIL."""
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # No directory for the cache.
        return numba.njit(nogil=True)(function)


def make_ready(first_call: Callable[[], object], function: Any) -> None:
    """Make the first call of compiled functions, of which `function` is the one that takes longest.

    The services of the modules of a detector start together: one of them compiles, which takes several
    seconds, while the others wait. If the call fails, the cache is removed, and everything is compiled again:
    a power failure may leave empty files.
    """
    with Path(function.py_func.__code__.co_filename).open("rb") as source:
        if function.stats.cache_path and not _is_cached(function):
            _wait_for_lock(source.fileno())
        try:
            first_call()
        except Exception:
            # There is no list of what damaged files raise. Another reason fails again.
            if function.stats.cache_path is None:
                raise
            for path in Path(function.stats.cache_path).glob("*.nb[ic]"):
                path.unlink(missing_ok=True)
            first_call()


def _is_cached(function: Any) -> bool:
    """Return whether the cache has code of a function, compiled after its source had changed last."""
    source = Path(function.py_func.__code__.co_filename)
    changed_at = source.stat().st_mtime
    found = Path(function.stats.cache_path).glob(f"{source.stem}.{function.__name__}-*.nbc")
    return any(each.stat().st_mtime > changed_at for each in found)


def _wait_for_lock(descriptor: int) -> None:
    """Lock an open file, unless another process keeps it locked for too long: then both compile."""
    end = time.monotonic() + COMPILE_TIMEOUT_S
    while time.monotonic() < end:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.1)
        except OSError:
            return  # NFS locks no files that are open for reading only.
