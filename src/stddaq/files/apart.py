"""Looking into files of any origin in a process apart: HDF5 can crash over a damaged one, or never end.

Of a damaged file that was left by a SWMR writer HDF5 reads a block a hundred times, each time after twice the
pause: for longer than the universe is old. Nothing in this process could interrupt that.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from stddaq.errors import FileLayoutError, StdDaqError

T = TypeVar("T")
# A million rows take a second where the disk is near.
PATIENCE_S = 60.0


def apart(function: Callable[[], T], path: Path, patience: float | None = None) -> T:
    """The result of `function`, which looks into `path`, from a child process; or its `StdDaqError`.

    Raises `FileLayoutError` when the child crashes, or is not done after `patience` seconds (default
    `PATIENCE_S`). For programs without threads: the child is a fork.
    """
    patience = PATIENCE_S if patience is None else patience
    read, write = os.pipe()
    with warnings.catch_warnings():
        # Of the idle threads of numerical libraries, which do not mind.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        _answer(function, write)
    os.close(write)
    try:
        answer = _read_all(read, time.monotonic() + patience)
    except TimeoutError:
        raise FileLayoutError(f"{path}: is damaged: reading it does not come to an end") from None
    finally:
        os.close(read)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if not answer:
        raise FileLayoutError(f"{path}: is damaged: HDF5 crashes over it")
    result, error = pickle.loads(answer)
    if error is not None:
        raise error
    return result


def _answer(function: Callable[[], object], write: int) -> None:
    """Send the result, or the exception, and end, without any of the parent's clean-up."""
    try:
        try:
            answer = pickle.dumps((function(), None))
        except StdDaqError as error:
            answer = pickle.dumps((None, error))
        except Exception as error:  # noqa: BLE001  (the parent raises it)
            answer = pickle.dumps((None, RuntimeError(f"{type(error).__name__}: {error}")))
        with os.fdopen(write, "wb") as pipe:
            pipe.write(answer)
    finally:
        os._exit(0)


def _read_all(fd: int, deadline: float) -> bytes:
    """Everything up to the end of the pipe. Raises `TimeoutError`."""
    content = bytearray()
    poller = select.poll()  # Other than select() it takes descriptors beyond 1023.
    poller.register(fd, select.POLLIN)
    while poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
        part = os.read(fd, 65536)
        if not part:
            return bytes(content)
        content += part
    raise TimeoutError
