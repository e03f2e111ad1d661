"""Run a service whose threads run ahead of the one that starts them, as they do on a busy machine.

`threads_ahead.py MODULE [ARGUMENT ...]` runs `main` of a module.
"""

from __future__ import annotations

import importlib
import sys
import threading

AHEAD_S = 0.5


class ThreadAhead(threading.Thread):
    """A thread that has `AHEAD_S` for itself before its `start` returns."""

    def start(self) -> None:
        super().start()
        self.join(AHEAD_S)


if __name__ == "__main__":
    threading.Thread = ThreadAhead
    sys.exit(importlib.import_module(sys.argv[1]).main(sys.argv[2:]))
