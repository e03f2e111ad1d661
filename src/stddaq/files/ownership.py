"""Which run an existing raw file belongs to: `scan10.h5` is writer 10 of `scan`, or writer 0 of `scan1`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stddaq.errors import FileLayoutError
from stddaq.files.names import is_ambiguous, prefix_by_names
from stddaq.files.opening import examine
from stddaq.files.raw_rows import Origin, raw_group


def file_of_other_prefix(paths: Sequence[Path], prefix: str) -> tuple[Path, str] | None:
    """Return the first of `paths`, existing raw files, that belongs to a run of another prefix, and that."""
    for path in filter(is_ambiguous, paths):
        found = _prefix_of(path)
        if found not in (None, prefix):
            return path, found
    return None


def _prefix_of(path: Path) -> str | None:
    """Return the prefix of the run that wrote `path`: by its attribute `writer`, else by its neighbours."""
    writer = _writer_of(path)
    stem = path.name.removesuffix(".h5")
    if writer is not None and stem.endswith(str(writer)):
        return stem.removesuffix(str(writer))
    return prefix_by_names(path)


def _writer_of(path: Path) -> int | None:
    try:
        with examine(path, allow_unclosed=True) as opened:
            group = raw_group(opened.file)
            return Origin.of(group).writer if group else None
    except FileLayoutError:
        return None
