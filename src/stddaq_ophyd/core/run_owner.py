"""The owner of a driver run: a file for each driver, whose lock the kernel frees when the process ends.

A process that is killed leaves its run to the driver. The next one of the same user on the same machine finds
the id of the run in the file, without lock, and may end the run. Its own run uses the file again and removes
it at the end, so that files do not accumulate.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from pathlib import Path

from stddaq.dataplane.endpoints import ipc_directory

_MAX_ID_BYTES = 4096


class RunOwner:
    """Owns the run `run_id` of the driver at `url` until it is released, or the process ends."""

    def __init__(self, url: str, run_id: str) -> None:
        self._path = _path_of(url)
        # Without the file another process cannot take the run over, but this run is not affected.
        self._descriptor = _lock(self._path, os.O_CREAT)
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, 0)
                os.pwrite(self._descriptor, run_id.encode(), 0)

    def release(self) -> None:
        """Give the run up. Releasing again does nothing."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            self._path.unlink(missing_ok=True)
            os.close(descriptor)


def is_orphan(url: str, run_id: str) -> bool:
    """Return whether a process of this user on this machine owned the run and has ended."""
    descriptor = _lock(_path_of(url))
    if descriptor is None:
        return False
    try:
        return os.pread(descriptor, _MAX_ID_BYTES, 0) == run_id.encode()
    finally:
        os.close(descriptor)


def _lock(path: Path, flags: int = 0) -> int | None:
    """Return the file, open and locked; None if another process has it, or it is another user's."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | flags, 0o600)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        is_mine = False
    else:
        is_mine = os.fstat(descriptor).st_uid == os.geteuid()
    if is_mine:
        return descriptor
    os.close(descriptor)
    return None


def _path_of(url: str) -> Path:
    name = hashlib.sha256(url.encode()).hexdigest()[:16]
    return ipc_directory() / f"stddaq-run-{os.geteuid()}-{name}"
