"""The metrics page of a service: a small file with the values of its registry, for other processes to read.

The main loop writes it, also while it waits, so a loop that hangs is seen. A page holds two copies of the
values: the writer fills the one that is not valid and then makes it valid by the next generation number. A
reader is never blocked, and a writer that is killed leaves a valid page. The writer locks its page, so a page
without a lock is that of a process that has ended.

Pages are in `NAME.metrics` in the directory of the ipc sockets. `stddaq.daemon.metrics_reader` reads them.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
import struct
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from stddaq import __version__
from stddaq.daemon import log, metrics
from stddaq.daemon.forced_exit import before_forced_exit
from stddaq.daemon.metrics import Registry
from stddaq.open_directory import OpenDirectory
from stddaq.text import mismatch
from stddaq.wire.default_addresses import ipc_directory

MAGIC = int.from_bytes(b"stddaqm1", "little")
# Magic number, pid, start of the process in clock ticks since the boot, start of the service in ns since
# 1970, longest time without a heartbeat in ns, length of the schema in bytes; then what changes.
FIXED = struct.Struct("=6Q")
# Heartbeat in ns of the monotonic clock, number of values, generation: copy `generation % 2` is valid.
STATE = struct.Struct("=3Q")
SCHEMA_AT = 4096
PUBLISH_PERIOD_S = 0.2
CHECK_PERIOD_S = 1.0
# Whoever may use this machine may see whether its services work; pages contain no paths and no users.
DIRECTORY_MODE, PAGE_MODE = 0o755, 0o644
_STRUCT_FLOCK = "hhqqi"
_ATTEMPTS = 5


def directory_of(detector_name: str) -> Path:
    """Return the directory of the pages of a detector's services."""
    return ipc_directory() / f"{detector_name}.metrics"


def page_name(service: str, instance_id: str) -> str:
    """Return the file name of a page."""
    return f"{service}-{instance_id}" if instance_id else service


def values_at(schema_length: int) -> int:
    """Return where the first copy of the values begins."""
    return SCHEMA_AT + (schema_length + 7) // 8 * 8


def is_locked(fd: int) -> bool:
    """Return whether the process that writes a page runs."""
    request = struct.pack(_STRUCT_FLOCK, fcntl.F_RDLCK, os.SEEK_SET, 0, 1, 0)
    return struct.unpack(_STRUCT_FLOCK, fcntl.fcntl(fd, fcntl.F_OFD_GETLK, request))[0] != fcntl.F_UNLCK


def start_ticks(pid: int) -> int:
    """Return when a process has started; with its pid it identifies the process. Raise `OSError`."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


class MetricsPage:
    """The page of this process, which makes and keeps it.

    A failure is logged once and changes nothing else: a service works without its page.
    """

    def __init__(self, registry: Registry, period: float, config_etag: str = "") -> None:
        """`period`: seconds between statistics lines; a service is silent after two of them and 2 s.

        `config_etag`: of the configuration that the service has read at its start.
        """
        self._registry, self._period, self._config_etag = registry, period, config_etag
        self._directory = directory_of(registry.labels["detector"])
        self._name = page_name(registry.labels["service"], registry.labels["instance_id"])
        self._pid, self._started_ns = os.getpid(), time.time_ns()
        self._file: _PageFile | None = None
        self._publish_at = self._check_at = 0.0
        self._problem = ""
        self._revoke_clean_up = before_forced_exit(self._remove)

    def publish_if_due(self) -> None:
        """Write the values at most five times a second. Call it in every turn of the main loop; 0.1 us."""
        now = time.monotonic()
        if now >= self._publish_at:
            self._publish_at = now + PUBLISH_PERIOD_S
            try:
                self._publish(now)
            except OSError as error:
                self._report(str(error))

    def _publish(self, now: float) -> None:
        if now >= self._check_at:
            self._check_at = now + CHECK_PERIOD_S
            self._check()
        if self._file:
            self._file.write(list(self._registry.read().values()))

    def _check(self) -> None:
        """Make the page if there is none, or if it was removed."""
        if self._file and self._file.is_at(self._directory / self._name):
            return
        self._drop()
        if holder := working_holder(self._directory / self._name):
            expected = "no page of another running service of this name"
            self._report(mismatch(str(self._directory / self._name), expected, f"one of process {holder}"))
            return
        self._file = self._make()
        self._problem = ""

    def _make(self) -> _PageFile:
        for _ in range(_ATTEMPTS):
            with contextlib.suppress(FileExistsError):
                self._directory.mkdir(DIRECTORY_MODE)
            # The last page of a service that ends removes the directory.
            with (
                contextlib.suppress(FileNotFoundError),
                OpenDirectory(self._directory, follow=False) as directory,
            ):
                owner = os.fstat(directory.fd).st_uid
                if owner not in (0, os.geteuid()):
                    expected = f"a directory of root or of uid {os.geteuid()}"
                    raise PermissionError(mismatch(str(self._directory), expected, f"one of uid {owner}"))
                schema = _schema(self._registry, self._config_etag)
                return _PageFile(
                    directory, self._name, self._registry, schema, self._started_ns, self._period
                )
        raise FileNotFoundError(f"{self._directory}: removed while the metrics page was made")

    def _report(self, problem: str) -> None:
        if problem != self._problem:
            log.logger.warning("no metrics are published: %s", problem)
        self._problem = problem

    def remove(self) -> None:
        """Remove the page from disk, and the directory with the last one."""
        with contextlib.suppress(OSError):
            self._remove()

    def close(self) -> None:
        """Release the page; one that was not removed shows that its service has ended."""
        self._drop()
        self._revoke_clean_up()

    def _remove(self) -> None:
        path = self._directory / self._name
        # A fork has this object, too, and its end is not that of the service.
        if self._file and self._pid == os.getpid() and self._file.is_at(path):
            path.unlink()
            _remove_if_empty(self._directory)

    def _drop(self) -> None:
        if self._file:
            self._file.close()
            self._file = None


class _OwnPages:
    """The pages that `published_pages` closes. Only the process of a service has any."""

    def __init__(self) -> None:
        self.are_published = False
        self.etags: Mapping[str, str] = {}
        self.pages: list[MetricsPage] = []


_own = _OwnPages()


@contextlib.contextmanager
def published_pages(etags: Mapping[str, str]) -> Iterator[None]:
    """Publish the pages that are made meanwhile, until the service ends. The page of one that fails stays.

    `etags`: of the configurations that the service has read, by detector.
    """
    _own.are_published = True
    _own.etags = etags
    try:
        yield
        for page in _own.pages:
            page.remove()
    finally:
        _own.are_published = False
        while _own.pages:
            _own.pages.pop().close()


def published_page(registry: Registry, period: float) -> MetricsPage | None:
    """Return the page of `registry`; None outside `published_pages`, as in tests of a part of a service."""
    if not _own.are_published:
        return None
    for level in log.n_logged:
        registry.add(metrics.MESSAGES_LOGGED, partial(log.n_logged.__getitem__, level), level=level)
    page = MetricsPage(registry, period, _own.etags.get(registry.labels["detector"], ""))
    _own.pages.append(page)
    return page


class _PageFile:
    """A page on disk, locked by this process."""

    def __init__(
        self,
        directory: OpenDirectory,
        name: str,
        registry: Registry,
        schema: bytes,
        started_ns: int,
        period: float,
    ) -> None:
        self._series = registry.series
        self._values = struct.Struct(f"={len(self._series)}d")
        self._values_at, self._generation = values_at(len(schema)), 0
        temporary = f".{name}.{os.getpid()}"
        directory.remove(temporary)
        self._fd = directory.create(temporary, PAGE_MODE)
        try:
            os.fchmod(self._fd, PAGE_MODE)
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, struct.pack(_STRUCT_FLOCK, fcntl.F_WRLCK, 0, 0, 1, 0))
            pid = os.getpid()
            fixed = FIXED.pack(MAGIC, pid, start_ticks(pid), started_ns, int(period * 1e9), len(schema))
            os.pwrite(self._fd, schema.ljust(self._values_at - SCHEMA_AT), SCHEMA_AT)
            self._write_values(list(registry.read().values()))
            os.pwrite(self._fd, fixed, 0)
            directory.replace(temporary, name)
        except BaseException:
            os.close(self._fd)
            directory.remove(temporary)
            raise
        status = os.fstat(self._fd)
        self._inode = status.st_dev, status.st_ino

    def write(self, values: list[float]) -> None:
        """Replace the values. 6 us."""
        if len(values) != len(self._series):
            raise OSError(mismatch("series of the page", f"{len(self._series)}", f"{len(values)}"))
        self._write_values(values)

    def _write_values(self, values: list[float]) -> None:
        generation = self._generation + 1
        copy_at = self._values_at + generation % 2 * self._values.size
        os.pwrite(self._fd, self._values.pack(*values), copy_at)
        os.pwrite(self._fd, STATE.pack(time.monotonic_ns(), len(values), generation), FIXED.size)
        self._generation = generation

    def is_at(self, path: Path) -> bool:
        """Return whether `path` names this file. Raise `OSError` if that cannot be known."""
        try:
            status = path.lstat()
        except FileNotFoundError:
            return False
        return (status.st_dev, status.st_ino) == self._inode

    def close(self) -> None:
        """Release the lock."""
        os.close(self._fd)


def _schema(registry: Registry, config_etag: str) -> bytes:
    return json.dumps(
        {
            "labels": registry.labels,
            "version": __version__,
            "config_etag": config_etag,
            "series": [[series.metric.name, *series.labels] for series in registry.series],
        }
    ).encode()


def working_holder(path: Path) -> int:
    """Return the pid of the process that has a page and writes it; 0 if there is none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        content = os.pread(fd, FIXED.size + STATE.size, 0)
        if len(content) < FIXED.size + STATE.size or not is_locked(fd):
            return 0
        _, pid, _, _, period_ns, _ = FIXED.unpack(content[: FIXED.size])
        heartbeat_ns = STATE.unpack(content[FIXED.size :])[0]
        return 0 if time.monotonic_ns() - heartbeat_ns > silent_after_ns(period_ns) else pid
    finally:
        os.close(fd)


def silent_after_ns(period_ns: int) -> int:
    """Return the age of the heartbeat from which a service is silent."""
    return 2 * period_ns + 2_000_000_000


def remove_unused_pages(detector_name: str) -> None:
    """Remove the pages of a detector's services that were killed."""
    path = directory_of(detector_name)
    with contextlib.suppress(OSError), OpenDirectory(path, follow=False) as directory:
        for name in directory.names():
            with contextlib.suppress(OSError), directory.opened(name) as opened:
                fd = os.open(opened, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                try:
                    is_unused = stat.S_ISREG(os.fstat(fd).st_mode) and not is_locked(fd)
                finally:
                    os.close(fd)
                if is_unused:
                    directory.remove(name)
    _remove_if_empty(path)


def _remove_if_empty(directory: Path) -> None:
    with contextlib.suppress(OSError):
        directory.rmdir()
