"""Removes the oldest files of an image buffer, each with the keys and ids of its images."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stddaq.buffer.leases import replayed_ranges
from stddaq.client.buffer_index import BufferIndex, ImageBufferUnreachableError
from stddaq.daemon.log import logger
from stddaq.wire.image_buffer import IDS_PER_FILE, file_name, first_id_of, ids_key, image_key


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    first_id: int
    written_at: float
    n_bytes: int


class Retention:
    """Keeps files for some time, or up to some size. Files that a replay or the writer may need stay.

    Attributes:
        n_removed: files removed.
    """

    def __init__(
        self,
        index: BufferIndex,
        directory: Path,
        needed: Callable[[], Collection[str]],
        *,
        keep_s: float | None = None,
        limit_bytes: float | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`needed` returns the names of the files that stay in any case."""
        self._index, self._directory, self._needed = index, directory, needed
        self._keep_s, self._limit_bytes, self._clock = keep_s, limit_bytes, clock
        self.n_removed = 0
        self._problem = ""

    def attend(self) -> None:
        """Remove what is due. Log a new problem."""
        problem = ""
        try:
            self._remove_due()
        except (ImageBufferUnreachableError, OSError) as error:
            problem = str(error)
            if problem != self._problem:
                logger.error("old files cannot be removed: %s", problem)
        self._problem = problem

    def _remove_due(self) -> None:
        files = sorted(self._files(), key=lambda file: (file.written_at, file.first_id))
        n_bytes, now = sum(file.n_bytes for file in files), self._clock()
        needed = self._needed()
        replayed = replayed_ranges(self._index)
        for file in files:
            is_old = self._keep_s is not None and file.written_at < now - self._keep_s
            is_too_much = self._limit_bytes is not None and n_bytes > self._limit_bytes
            if not (is_old or is_too_much):
                return
            if file_name(file.first_id) in needed or _overlaps(file.first_id, replayed):
                continue
            self._remove(file)
            n_bytes -= file.n_bytes
            self.n_removed += 1

    def _remove(self, file: _File) -> None:
        """Remove the keys first, so that no reader is sent to a file that is not there."""
        index = self._index
        ids = index.ids(file.first_id, file.first_id + IDS_PER_FILE - 1, IDS_PER_FILE)
        with index.reachable():
            pipeline: Any = index.redis.pipeline(transaction=False)
            if ids:
                pipeline.delete(*(image_key(index.camera, image_id) for image_id in ids))
                pipeline.zrem(ids_key(index.camera), *ids)
            pipeline.execute()
        file.path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # It has further files.
            file.path.parent.rmdir()

    def _files(self) -> list[_File]:
        """Return the files of the buffer. Other files are not touched."""
        found: list[_File] = []
        for folder in os.scandir(self._directory):
            if not folder.is_dir(follow_symlinks=False):
                continue
            for entry in os.scandir(folder):
                first_id = first_id_of(Path(entry.path))
                if first_id is None or not entry.is_file(follow_symlinks=False):
                    continue
                status = entry.stat(follow_symlinks=False)
                found.append(_File(Path(entry.path), first_id, status.st_mtime, status.st_size))
        return found


def _overlaps(first_id: int, ranges: Sequence[tuple[int, int]]) -> bool:
    return any(first < first_id + IDS_PER_FILE and first_id <= last for first, last in ranges)
