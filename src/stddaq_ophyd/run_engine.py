"""Find out whether a RunEngine calls a device, and what for."""

from __future__ import annotations

import asyncio
import threading


def in_run_engine() -> bool:
    """Return whether a RunEngine calls: any, while `in_bluesky_event_loop` knows only the newest."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return threading.current_thread().name == "bluesky-run-engine"


def is_description_for_documents() -> bool:
    """Return whether a RunEngine calls for the documents of a new stream, and not a plan that it runs.

    Plans run in the task of `RunEngine._run`; descriptions of new streams are gathered in tasks of their own.
    """
    if not in_run_engine():
        return False
    task = asyncio.current_task()
    coroutine = task.get_coro() if task else None
    return getattr(coroutine, "__qualname__", "") != "RunEngine._run"
