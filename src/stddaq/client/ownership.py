"""Clients with sockets or threads release them when they are collected, and notice a fork."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable

from stddaq.errors import StdDaqError
from stddaq.text import mismatch


class ForkedClientError(StdDaqError, RuntimeError):
    """A client was used in a fork of the process that made it. Its threads and sockets do not work there."""


class OwnProcess:
    """The process in which a client works."""

    def __init__(self, where: str) -> None:
        """This process. `where` opens the error."""
        self._where, self._pid = where, os.getpid()

    @property
    def is_this(self) -> bool:
        """False in a fork."""
        return os.getpid() == self._pid

    def check(self) -> None:
        """Raise `ForkedClientError` in a fork."""
        if not self.is_this:
            raise ForkedClientError(
                mismatch(
                    self._where,
                    "a client that this process made",
                    "one that was made before a fork",
                    "make a client in each process",
                )
            )


class Ownership:
    """Releases what a client owns: once, on request, when the client is collected, or at exit.

    Objects of a reference cycle are collected in any order. The callback of the weak reference to the client
    runs before, and keeps alive what it releases.
    """

    def __init__(self, owner: object, where: str, release: Callable[[], None]) -> None:
        """`release` must not refer to `owner`, and may be called in any thread. `where` opens the error."""
        self._process = OwnProcess(where)
        self._finalizer = weakref.finalize(owner, _release_in, self._process, release)

    def check(self) -> None:
        """Raise `ForkedClientError` in a fork of the process that made the client."""
        self._process.check()

    def release(self) -> None:
        """Release now. In a fork, and when called again, this does nothing."""
        self._finalizer()


def _release_in(process: OwnProcess, release: Callable[[], None]) -> None:
    if process.is_this:
        release()
