"""Follow a configuration file while it is edited, moved into place or missing.

Live streams poll a `ConfigWatch` in their loops; `stddaq up` iterates over `config_changes`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

from stddaq.config.model import DetectorConfig
from stddaq.errors import ConfigError

POLL_S = 0.25


class ConfigWatch:
    """The changes of the configuration file at `path`. Call `poll` or `has_changed` periodically.

    Editors do not write a file at once, so it is read after two polls have found it unchanged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, ...] | None = None
        # No file has this identity, so the file is read once even if it never changes: it may have been
        # replaced since the service read it.
        self._handled: tuple[int, ...] | None = ()

    def poll(self) -> DetectorConfig | None:
        """Return the configuration once after each change of the file, and once at the start; else None.

        Raise `ConfigError`, also once for each change, when the file is missing or not valid.
        """
        return DetectorConfig.load(self._path) if self.has_changed() else None

    def has_changed(self) -> bool:
        """Return true once after each change of the file, and once at the start."""
        identity = _identity(self._path)
        if identity == self._handled or identity != self._seen:
            self._seen = identity
            return False
        self._handled = identity
        return True


async def config_changes(
    path: Path, report: Callable[[ConfigError], None], interval: float = POLL_S
) -> AsyncIterator[DetectorConfig]:
    """Yield the configuration now and after each change of the file at `path`.

    Poll every `interval` seconds. A file that is missing or not valid goes to `report` instead.
    """
    # Live streams, which import this module, need no asyncio: a tenth of their start, and 4 MB of memory.
    import asyncio

    watch = ConfigWatch(path)
    while True:
        try:
            config = watch.poll()
        except ConfigError as error:
            report(error)
        else:
            if config is not None:
                yield config
        await asyncio.sleep(interval)


def _identity(path: Path) -> tuple[int, ...] | None:
    """Return a value that differs after every change of the file; None if it is missing."""
    try:
        status = path.stat()
    except OSError:
        return None
    # A file that was moved into place has another inode, whatever its time and size.
    return status.st_mtime_ns, status.st_size, status.st_ino
