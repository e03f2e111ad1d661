"""Calls of HDF5 that write, and whether one has failed in this process.

After a failed write or close, HDF5 keeps the file and its unwritten parts, and may crash when it touches them
again: while it closes another file, or at the end of the process. Such a process serves no further run.
"""

from __future__ import annotations

import errno
import sys
from types import TracebackType
from typing import Any


class Hdf5Calls:
    """A context manager around such calls. They raise `OSError` only. It takes 0.2 us.

    Attributes:
        failed: one of the calls has failed.
    """

    def __init__(self) -> None:
        self.failed = False

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            return
        if not self.failed:
            _silence_releases()
        self.failed = True
        if kind is RuntimeError:
            raise OSError(errno.EIO, str(error)) from error


def _silence_releases() -> None:
    """Keep h5py from printing that it cannot release what a failed write has left; the failure is known.

    Cython prints an error of `__dealloc__` twice: as not caught, and as one that cannot be raised.
    """
    print_uncaught, print_unraisable = sys.excepthook, sys.unraisablehook

    def uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not _is_of_release(error):
            print_uncaught(kind, error, trace)

    def unraisable(event: Any) -> None:
        if not _is_of_release(event.exc_value):
            print_unraisable(event)

    sys.excepthook, sys.unraisablehook = uncaught, unraisable


def _is_of_release(error: BaseException | None) -> bool:
    return isinstance(error, RuntimeError) and str(error).startswith("Can't decrement id ref count")


# Of this process.
hdf5_calls = Hdf5Calls()
