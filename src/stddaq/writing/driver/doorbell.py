"""Calls a function in the asyncio loop when another thread rings, at the least cost for both threads.

`call_soon_threadsafe` makes objects for each call, and the loop reads its socket until an exception says that
it is empty: up to 0.1 ms for each image of a slow stream, whose wake-ups find cold caches.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable


class Doorbell:
    """Belongs to the running loop; `ring` to another thread. Several rings may cause one call."""

    def __init__(self, answer: Callable[[], object]) -> None:
        """`answer` is called in the loop."""
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._answer = answer
        asyncio.get_running_loop().add_reader(self._fd, self._respond)

    def ring(self) -> None:
        """Have the function called soon. The end of the loop does not matter."""
        os.eventfd_write(self._fd, 1)

    def _respond(self) -> None:
        os.eventfd_read(self._fd)
        self._answer()

    def __del__(self) -> None:
        # Not with the loop: a descriptor that the other thread may still use must not become another one's.
        os.close(self._fd)
