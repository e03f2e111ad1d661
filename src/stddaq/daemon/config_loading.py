"""Validates configurations in child processes, because pydantic takes 11 MB of memory."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from stddaq.config import DetectorConfig
from stddaq.daemon.isolation import CrashError, run_in_fork, run_in_process, start_in_thread
from stddaq.errors import ConfigError

if TYPE_CHECKING:
    from concurrent.futures import Future

# For a file system that hangs, or a machine that is overloaded.
TIMEOUT_S = 60.0


def load_in_fork(path: str) -> DetectorConfig:
    """Return `DetectorConfig.load` of `path`; for services that have no threads yet."""
    return run_in_fork(functools.partial(DetectorConfig.load, path), TIMEOUT_S, path)


def validated_in_process(text: bytes, where: str) -> DetectorConfig:
    """Return `DetectorConfig.of_text`, from any thread. Raise `ConfigError`."""
    try:
        return run_in_process(functools.partial(DetectorConfig.of_text, text, where), TIMEOUT_S, where)
    except (CrashError, OSError) as error:
        raise ConfigError(str(error)) from error


def validation_in_process(text: bytes, where: str) -> Future[DetectorConfig]:
    """Start `validated_in_process`, and do not wait for its end."""
    return start_in_thread(functools.partial(validated_in_process, text, where))
