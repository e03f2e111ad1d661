"""Follows a configuration file: `stddaq up` learns here what others have made of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from stddaq.config import DetectorConfig
from stddaq.errors import ConfigError

POLL_S = 0.25


async def config_changes(
    path: Path, say: Callable[[str], None], poll: float = POLL_S
) -> AsyncIterator[DetectorConfig]:
    """The configuration now, and again whenever the file has changed and can be used.

    One that cannot is told to `say`, once, and passed over. A file that is changing is left alone until it
    has been the same for `poll` seconds: editors do not write it at once.
    """
    seen = None
    while True:
        stamp = _stamp(path)
        if stamp != seen:
            await asyncio.sleep(poll)
            if _stamp(path) != stamp:
                continue
            seen = stamp
            try:
                yield DetectorConfig.load(path)
            except ConfigError as error:
                say(f"ignored, the services run on as they are: {error}")
        await asyncio.sleep(poll)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """What changes when the file does; None when there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size
