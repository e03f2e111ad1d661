"""The owner of a driver run: a file for each driver, whose lock ends with the process, or with the owner.

A process that is killed, or a staged device that is collected as garbage, leaves its run to the driver. The
next device of the same user on the same machine finds the id of the run in the file, without lock, and may
end the run. Its own run uses the file again and removes it at the end, so that files do not accumulate.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import weakref
from pathlib import Path

from stddaq.wire.default_addresses import ipc_directory

_MAX_ID_BYTES = 4096


class RunOwner:
    """Owns the run `run_id` of the driver at `url` until it is released, is garbage, or the process ends."""

    def __init__(self, url: str, run_id: str) -> None:
        self._path = _path_of(url)
        # Without the file another process cannot take the run over, but this run is not affected.
        descriptor = _lock(self._path, os.O_CREAT)
        self._unlock: weakref.finalize[..., RunOwner] | None = None
        if descriptor is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, run_id.encode(), 0)
            self._unlock = weakref.finalize(self, os.close, descriptor)
            # An exiting program ends the run first; the kernel frees the lock.
            self._unlock.atexit = False

    def release(self) -> None:
        """Give the run up. Releasing again does nothing."""
        if self._unlock is not None and self._unlock.alive:
            self._path.unlink(missing_ok=True)
            self._unlock()


def is_orphan(url: str, run_id: str) -> bool:
    """Return whether a device of this user on this machine owned the run, and does not exist any more."""
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
