"""Run a console script in which one function can block.

`blocked.py MODULE:FUNCTION FIFO SCRIPT [ARGUMENT ...]`

While FIFO exists, each call waits in a system call, as of storage that does not respond, and first makes the
file FIFO.entered. If FIFO is a regular file, each call stops its process instead, until SIGCONT. The
function may be a method: `MODULE:CLASS.METHOD`.
"""

from __future__ import annotations

import functools
import importlib
import os
import signal
import sys
from importlib.metadata import distribution
from pathlib import Path
from typing import Any


def let_block(target: str, fifo: Path) -> None:
    """Replace the function by one that blocks while `fifo` exists."""
    module, _, name = target.partition(":")
    *owners, name = name.split(".")
    owner = functools.reduce(getattr, owners, importlib.import_module(module))
    function = getattr(owner, name)

    def blocking(*args: Any, **options: Any) -> Any:
        if fifo.is_file():
            os.kill(os.getpid(), signal.SIGSTOP)
        elif fifo.exists():
            fifo.with_name(f"{fifo.name}.entered").touch()
            os.close(os.open(fifo, os.O_RDONLY))
        return function(*args, **options)

    setattr(owner, name, blocking)


def main() -> int:
    target, fifo, script = sys.argv[1:4]
    entry_points = distribution("stddaq").entry_points.select(group="console_scripts")
    run = entry_points[script].load()
    let_block(target, Path(fifo))
    sys.argv = sys.argv[3:]
    return run()


if __name__ == "__main__":
    sys.exit(main())
