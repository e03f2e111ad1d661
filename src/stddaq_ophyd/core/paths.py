"""Where the files of the next run go: a provider that the user chooses, asked once per staging.

The driver's host and the one that reads may see the same directory under different names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from stddaq_ophyd.core.errors import AcquisitionError


@dataclass(frozen=True, slots=True)
class PathInfo:
    """Where the files of one staging go.

    Attributes:
        directory: as the driver and its writers see it; absolute.
        prefix: beginning of the names of all files.
        read_directory: the same directory as this process and the readers of documents see it.
    """

    directory: Path
    prefix: str
    read_directory: Path


class PathProvider(Protocol):
    """Says where the next run's files go. Called in a thread of the device, for each staging."""

    def __call__(self, device_name: str) -> PathInfo:
        """A directory that exists, and a prefix that no file in it has yet."""
        ...


class DirectoryPaths:
    """Files in one directory, named by the device and a number: `<directory>/<device>_00001_0.h5`.

    With the metadata of the RunEngine (`RE.md`) the number is that of the scan, in a directory of its own:
    `<directory>/scan_00042/<device>_0.h5`. Names that are taken already get a letter behind them.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        read_directory: str | Path | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """`directory` as the driver sees it, `read_directory` as this process does, if that differs.

        `metadata` is `RE.md`, of which the next `scan_id` is taken.
        """
        self._write = Path(directory).absolute()
        self._read = Path(read_directory or directory).absolute()
        self._metadata = metadata

    def __call__(self, device_name: str) -> PathInfo:
        """See `PathProvider`. Makes the directory; raises `AcquisitionError` when that is impossible."""
        device = re.sub(r"[^\w.-]", "_", device_name).lstrip(".") or "detector"
        if self._metadata is None:
            below, prefix = Path(), self._numbered(device)
        else:
            below = Path(f"scan_{int(self._metadata.get('scan_id', 0)) + 1:05d}")
            prefix = f"{device}_"
        read = self._read / below
        try:
            read.mkdir(parents=True, exist_ok=True)
            taken = [path.name for path in read.iterdir()]
        except OSError as error:
            raise AcquisitionError(
                f"{device_name}: the directory {read} cannot be made or read: {error.strerror}; "
                "allowed is a directory that this process may write to"
            ) from error
        return PathInfo(self._write / below, _free(prefix, taken), read)

    def _numbered(self, device: str) -> str:
        """The prefix behind the highest number that is there."""
        pattern = re.compile(re.escape(device) + r"_(\d{5,})[a-z]*_")
        try:
            names = [path.name for path in self._read.iterdir()]
        except OSError:
            names = []
        numbers = [int(match[1]) for name in names if (match := pattern.match(name))]
        return f"{device}_{max(numbers, default=0) + 1:05d}_"

    def __repr__(self) -> str:
        where = str(self._write) if self._read == self._write else f"{self._write}, read as {self._read}"
        return f"DirectoryPaths({where})"


def _free(prefix: str, taken: list[str]) -> str:
    """`prefix`, or with as many letters before its last `_` as make it new."""
    stem, candidate, n = prefix.removesuffix("_"), prefix, 0
    while any(re.match(re.escape(candidate) + r"(\d|Meta|Master|Published)", name) for name in taken):
        candidate = f"{stem}{_letters(n)}_"
        n += 1
    return candidate


def _letters(n: int) -> str:
    """a, b, ..., z, aa, ab, ..."""
    text = ""
    n += 1
    while n:
        n, rest = divmod(n - 1, 26)
        text = chr(ord("a") + rest) + text
    return text
