"""Replace this process by a new one with the same id, arguments, environment and standard streams.

Memory and all other open files are released. Supervisor and systemd do not notice, because process id and
parent stay the same.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

_VARIABLE = "STDDAQ_HANDED_OVER"


@dataclass(frozen=True, slots=True)
class HandedOver:
    """Received messages that are not carried out yet, and answers that are not sent yet."""

    requests: Sequence[bytes] = ()
    answers: Sequence[bytes] = ()


def replace_process(handed_over: HandedOver, stop_signals: Sequence[signal.Signals]) -> NoReturn:
    """Start again with `handed_over`. `stop_signals` stay blocked until the new process handles them."""
    signal.pthread_sigmask(signal.SIG_BLOCK, stop_signals)
    for stream in (sys.stdout, sys.stderr):
        if stream:
            stream.flush()
    memory = os.memfd_create("handed over", 0)
    os.write(memory, pickle.dumps((list(handed_over.requests), list(handed_over.answers))))
    os.lseek(memory, 0, os.SEEK_SET)
    # HDF5 opens files that a new program inherits. The space of a removed file would stay occupied.
    os.closerange(3, memory)
    os.closerange(memory + 1, os.sysconf("SC_OPEN_MAX"))
    os.environ[_VARIABLE] = str(memory)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def handed_over() -> HandedOver:
    """Return what the previous process has handed over; empty without one, and on further calls."""
    descriptor = os.environ.pop(_VARIABLE, None)
    if descriptor is None:
        return HandedOver()
    with os.fdopen(int(descriptor), "rb") as memory:
        return HandedOver(*pickle.load(memory))
