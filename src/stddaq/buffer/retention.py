"""Removes the oldest files of an image buffer, each with the keys and ids of its images."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stddaq.buffer.leases import replayed_ranges
from stddaq.buffer.stored_files import StoredFiles
from stddaq.client.buffer_index import BufferIndex, ImageBufferUnreachableError
from stddaq.daemon.log import logger
from stddaq.wire.image_buffer import IDS_PER_FILE, file_name, first_id_of, ids_key, image_key, replays_key

# Images are announced between two passes.
PASS_S = 0.2


@dataclass(frozen=True, slots=True)
class _File:
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
        files: StoredFiles,
        waiting_files: Callable[[], Collection[str]],
        *,
        keep_s: float | None = None,
        limit_bytes: float | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`waiting_files` returns the names of the files whose images are not announced yet."""
        self._index, self._files, self._waiting_files = index, files, waiting_files
        self._keep_s, self._limit_bytes, self._clock = keep_s, limit_bytes, clock
        self.n_removed = 0
        self._problem = ""
        self._was_unreachable = False

    def attend(self) -> bool:
        """Remove what is due, for up to `PASS_S`. Return whether more is. Log a new problem."""
        is_more, problem = False, ""
        try:
            is_more, problem = self._remove_due()
        except (ImageBufferUnreachableError, OSError) as error:
            self._was_unreachable |= isinstance(error, ImageBufferUnreachableError)
            problem = str(error)
        if problem and problem != self._problem:
            logger.error("old files cannot be removed: %s", problem)
        self._problem = problem
        return is_more

    def _remove_due(self) -> tuple[bool, str]:
        """Return whether more is due, and the problem with a file."""
        found, problem = self._find_files()
        files = sorted(found, key=lambda file: (file.written_at, file.first_id))
        n_bytes, now = sum(file.n_bytes for file in files), self._clock()
        end_at = time.monotonic() + PASS_S
        needed, replayed = self._waiting_files(), replayed_ranges(self._index)
        if self._was_unreachable:
            # Leases of replays may have expired meanwhile. Their readers renew them before the next pass.
            self._was_unreachable = False
            return False, problem
        for file in files:
            is_old = self._keep_s is not None and file.written_at < now - self._keep_s
            is_too_much = self._limit_bytes is not None and n_bytes > self._limit_bytes
            if not (is_old or is_too_much):
                break
            name = file_name(file.first_id)
            if name == self._files.open_name or name in needed or _overlaps(file.first_id, replayed):
                continue
            if time.monotonic() > end_at:
                return True, problem
            try:
                is_removed = self._remove(file)
            except OSError as error:
                if isinstance(error, ImageBufferUnreachableError):
                    raise
                problem = problem or str(error)
                continue
            if is_removed:
                n_bytes -= file.n_bytes
                self.n_removed += 1
        return False, problem

    def _remove(self, file: _File) -> bool:
        """Remove the keys first, so that no reader is sent to a file that is not there.

        Return False if the file is needed after all: by a replay that has started, or by the writer.
        """
        return self._remove_keys(file) and self._files.remove(file_name(file.first_id), self._waiting_files)

    def _remove_keys(self, file: _File) -> bool:
        """Remove the keys of a file, unless a replay needs it; of the two, one is first in the database."""
        from redis.exceptions import WatchError

        index = self._index
        with index.reachable(), index.redis.pipeline(transaction=True) as pipeline:
            removing: Any = pipeline
            removing.watch(replays_key(index.camera))
            if _overlaps(file.first_id, replayed_ranges(index)):
                return False
            ids = index.ids(file.first_id, file.first_id + IDS_PER_FILE - 1, IDS_PER_FILE)
            if not ids:
                return True
            removing.multi()
            removing.delete(*(image_key(index.camera, image_id) for image_id in ids))
            removing.zrem(ids_key(index.camera), *ids)
            try:
                removing.execute()
            except WatchError:
                # A lease was taken or renewed: the next pass decides.
                return False
        return True

    def _find_files(self) -> tuple[list[_File], str]:
        """Return the files of the buffer, and the problem with a folder. Other files are not touched."""
        found, problem = list[_File](), ""
        for folder in os.scandir(self._files.directory):
            if not folder.is_dir(follow_symlinks=False):
                continue
            try:
                found += _files_in(folder)
            except FileNotFoundError:  # Another program removes files.
                continue
            except OSError as error:
                problem = problem or str(error)
        return found, problem


def _files_in(folder: os.DirEntry[str]) -> Iterator[_File]:
    for entry in os.scandir(folder):
        first_id = first_id_of(Path(entry.path))
        if first_id is None or not entry.is_file(follow_symlinks=False):
            continue
        status = entry.stat(follow_symlinks=False)
        yield _File(first_id, status.st_mtime, status.st_size)


def _overlaps(first_id: int, ranges: Sequence[tuple[int, int]]) -> bool:
    return any(first < first_id + IDS_PER_FILE and first_id <= last for first, last in ranges)
