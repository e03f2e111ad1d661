"""List what stddaq's services may leave on a machine, one per line; `.ci/run` compares two lists.

These are shared-memory segments, ipc sockets, temporary directories, and processes whose environment has the
entry given as argument.
"""

import sys
from collections.abc import Iterator
from pathlib import Path


def files() -> Iterator[Path]:
    yield from Path("/dev/shm").iterdir()
    for pattern in ("*", "*/*"):
        yield from (path for path in Path("/tmp").glob(pattern) if path.is_socket())
    for pattern in ("sd-*", "stddaq-*"):
        yield from Path("/tmp").glob(pattern)


def processes(entry: str) -> Iterator[str]:
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if entry.encode() in (process / "environ").read_bytes().split(b"\0"):
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                yield f"process {process.name}: {command}"
        except OSError:
            continue  # It has exited, or belongs to another user.


if __name__ == "__main__":
    print("\n".join(sorted(map(str, [*files(), *processes(sys.argv[1])]))))
