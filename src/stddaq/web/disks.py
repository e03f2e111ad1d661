"""The free space of file systems, some of which may hang."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path

TIMEOUT_S = 0.5


@dataclass(frozen=True, slots=True)
class DiskUsage:
    """Size of a file system, and what users may still write."""

    free_bytes: int
    size_bytes: int


class Disks:
    """Asks each file system in a thread of its own, one request at a time."""

    def __init__(self) -> None:
        self._requests: dict[Path, _Request] = {}

    def usage(self, path: Path) -> DiskUsage | None:
        """Return the usage of the file system of `path`; None if it does not answer within 0.5 s."""
        request = self._requests.get(path)
        is_new = request is None or request.answered.is_set()
        if request is None or is_new:
            request = self._requests[path] = _Request(path)
        # A file system that has not answered earlier is not waited for again.
        request.answered.wait(TIMEOUT_S if is_new else 0)
        return request.usage


class _Request:
    def __init__(self, path: Path) -> None:
        self._path, self.answered = path, threading.Event()
        self.usage: DiskUsage | None = None
        threading.Thread(target=self._ask, name=f"disk {path}", daemon=True).start()

    def _ask(self) -> None:
        try:
            found = os.statvfs(self._path)
            self.usage = DiskUsage(found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize)
        except OSError:
            pass  # The directory does not exist, or this user may not reach it.
        self.answered.set()
