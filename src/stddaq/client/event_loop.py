"""The event loop of a thread of its own, for callers without one."""

from __future__ import annotations

import asyncio


def run_until_stopped(loop: asyncio.AbstractEventLoop) -> None:
    """Run a loop in this thread until `loop.stop`. Then cancel what still runs, and close the loop.

    Each task ends, so that no other thread waits for its result for ever, and releases its connections.
    """
    try:
        loop.run_forever()
        # A task may start another one while it ends.
        while tasks := asyncio.all_tasks(loop):
            for task in tasks:
                task.cancel()
            loop.run_until_complete(asyncio.wait(tasks))
    finally:
        loop.close()
