"""The processes that a process has started."""

from __future__ import annotations

from pathlib import Path


def children(pid: int) -> list[int]:
    """Return the processes whose parent is `pid`."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def child_of(pid: int, *words: str) -> int | None:
    """Return the child of `pid` in whose command each of `words` ends an argument, or None."""
    for child in children(pid):
        try:
            command = Path(f"/proc/{child}/cmdline").read_text().split("\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if all(any(argument.endswith(word) for argument in command) for word in words):
            return child
    return None
