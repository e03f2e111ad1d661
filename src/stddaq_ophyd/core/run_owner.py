"""The owner of a driver run: a file for each open run, whose lock the kernel frees when the process ends.

A process that is killed leaves its run to the driver. The next one of the same user on the same machine finds
the file without lock, and may end the run.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import tempfile
from pathlib import Path


class RunOwner:
    """Owns the run `run_id` until it is released, or the process ends."""

    def __init__(self, run_id: str) -> None:
        self._path = _file_of(run_id)
        self._descriptor: int | None = None
        # Without it another process cannot take the run over, which is no reason to fail.
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(mode=0o700, exist_ok=True)
            if _is_mine(self._path.parent):
                self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def release(self) -> None:
        """Give the run up. Releasing again does nothing."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            self._path.unlink(missing_ok=True)
            os.close(descriptor)


def is_orphan(run_id: str) -> bool:
    """Return whether a process of this user on this machine owned the run and has ended."""
    path = _file_of(run_id)
    try:
        if not _is_mine(path.parent):
            return False
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    else:
        path.unlink(missing_ok=True)
        return True
    finally:
        os.close(descriptor)


def _file_of(run_id: str) -> Path:
    name = re.sub(r"[^\w-]", "_", run_id)
    return Path(tempfile.gettempdir()) / f"stddaq-runs-{os.getuid()}" / name


def _is_mine(directory: Path) -> bool:
    status = directory.lstat()
    return status.st_uid == os.getuid() and directory.is_dir() and not directory.is_symlink()
