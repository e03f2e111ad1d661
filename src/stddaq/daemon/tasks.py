"""Tasks beside the one that serves: nothing awaits them before their service ends.

asyncio reports the exception of such a task when the task is collected as garbage, which an attribute may
prevent for ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from stddaq.daemon import log
from stddaq.daemon.forced_exit import CRASHED, exit_now


def start_lasting_task(coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Start a task that runs as long as its service.

    If it fails, the service exits with code 70 and a traceback. It would run on, and do a part of its work no
    more, in silence.
    """
    task = asyncio.create_task(coroutine, name=_name(coroutine))
    task.add_done_callback(_exit_if_failed)
    return task


def start_logged_task(coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Start a task that leaves its service usable in any case. If it fails, a traceback is logged."""
    task = asyncio.create_task(coroutine, name=_name(coroutine))
    task.add_done_callback(_log_if_failed)
    return task


def _name(coroutine: Coroutine[Any, Any, None]) -> str:
    return getattr(coroutine, "__qualname__", "unknown")


def _exit_if_failed(task: asyncio.Task[None]) -> None:
    if (error := _failure(task)) is not None:
        log.logger.error(
            "the task %s failed unexpectedly: the service exits", task.get_name(), exc_info=error
        )
        exit_now(CRASHED)


def _log_if_failed(task: asyncio.Task[None]) -> None:
    if (error := _failure(task)) is not None:
        log.logger.error("the task %s failed unexpectedly", task.get_name(), exc_info=error)


def _failure(task: asyncio.Task[None]) -> BaseException | None:
    return None if task.cancelled() else task.exception()
