"""The files of an image buffer, as its only writer appends to them."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path

from stddaq.closing import Closing
from stddaq.daemon.log import logger
from stddaq.dataplane.ipc_sockets import CHECK_PERIOD_S
from stddaq.errors import ConfigError
from stddaq.text import mismatch
from stddaq.wire.image_buffer import file_name


class StoredFiles(Closing):
    """Appends images. One writer per camera: the directory is locked.

    Attributes:
        directory: of the camera.
        open_name: of the file that images are being appended to; empty if there is none.
    """

    def __init__(self, directory: Path) -> None:
        """Create and lock the directory of the camera. Raise `ConfigError`."""
        self.directory = directory
        self.open_name, self._fd, self._offset = "", -1, 0
        self._check_at = 0.0
        # Another thread removes old files, of which ids that come again may open one.
        self._names, self._removing = threading.Condition(), ""
        try:
            directory.mkdir(exist_ok=True)
            self._lock = self._lock_directory()
        except BlockingIOError as error:
            raise ConfigError(
                mismatch(f"--root_dir: {directory}", "no other writer", "std_buffer_writer in it")
            ) from error
        except OSError as error:
            raise ConfigError(f"--root_dir: {directory}: cannot be used: {error.strerror}") from error

    def _lock_directory(self) -> int:
        """Return the descriptor of the locked directory. Raise `BlockingIOError` if another writer has it."""
        lock = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            # Some file systems have no locks for directories.
            if error.errno == errno.EWOULDBLOCK:
                os.close(lock)
                raise BlockingIOError(error.errno, "another std_buffer_writer stores images there") from error
        return lock

    def _follow_directory(self) -> None:
        """Lock the directory again if it was removed and made again. Raise `OSError`."""
        if not os.path.samestat(self.directory.stat(), os.fstat(self._lock)):
            lock = self._lock_directory()
            os.close(self._lock)
            self._lock = lock

    def append(self, image_id: int, chunk: bytes) -> int:
        """Append the bytes of an image. Return their offset. Raise `OSError`; the file then is as before."""
        name = file_name(image_id)
        if name != self.open_name:
            self._open(name)
        start, rest = self._offset, memoryview(chunk)
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, start)
            self._close_file()
            raise
        self._offset = start + len(chunk)
        return start

    def _open(self, name: str) -> None:
        self._close_file()
        path = self.directory / name
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        with self._names:
            self._names.wait_for(lambda: name != self._removing)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._follow_directory()
            self._fd = os.open(path, flags, 0o644)
            # A writer before this one may have left images, or a part of one.
            self._offset = os.fstat(self._fd).st_size
            self.open_name = name

    def remove(self, name: str, needed: Callable[[], Collection[str]]) -> bool:
        """Remove a file unless it is open or `needed`. Return whether it is removed. Raise `OSError`.

        Any thread may call it. An image that is appended meanwhile keeps its file.
        """
        path = self.directory / name
        with self._names:
            # In this order: images of a file that is open no more are waiting already.
            if name == self.open_name or name in needed():
                return False
            self._removing = name
        try:
            # It can take long if the file is large, while images go into others.
            path.unlink(missing_ok=True)
        finally:
            with self._names:
                self._removing = ""
                with contextlib.suppress(OSError):  # It has further files.
                    path.parent.rmdir()
                self._names.notify_all()
        return True

    def check(self) -> None:
        """Continue in a new file if the open one was removed. Call it at least once a second."""
        now = time.monotonic()
        if now < self._check_at or not self.open_name:
            return
        self._check_at = now + CHECK_PERIOD_S
        path, own = self.directory / self.open_name, os.fstat(self._fd)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            found = path.stat(follow_symlinks=False)
            if (found.st_dev, found.st_ino) == (own.st_dev, own.st_ino):
                if found.st_size != self._offset:
                    logger.warning("%s: another program has written to it", path)
                    self._offset = found.st_size
                return
        logger.warning("%s was removed with its images, continuing in a new file", path)
        self._close_file()

    def _close_file(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self.open_name, self._fd = "", -1

    def close(self) -> None:
        """Close the file, and unlock the directory."""
        self._close_file()
        os.close(self._lock)
