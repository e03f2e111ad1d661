"""Run a console script whose first call to the operating system fails.

`without_sockets.py SCRIPT [ARGUMENT ...]`.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from importlib.metadata import distribution


def _fail(*_: object) -> None:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def main() -> int:
    scripts = distribution("stddaq").entry_points.select(group="console_scripts")
    run = scripts[sys.argv[1]].load()
    socket.socketpair = _fail
    del sys.argv[0]
    return run()


if __name__ == "__main__":
    sys.exit(main())
