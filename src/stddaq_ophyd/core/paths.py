"""Where the files of the next run go. The device asks a provider, which the user chooses, once per staging.

The driver's host and the reading host may see the same directory under different names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from stddaq.text import mismatch
from stddaq_ophyd.core.errors import AcquisitionError, SettingError


def _never() -> bool:
    return False


@dataclass(frozen=True, slots=True)
class PathInfo:
    """Where the files of one staging go.

    Attributes:
        directory: as the driver and its writers see it; absolute.
        prefix: the names of all files begin with it.
        read_directory: the same directory as this process and the readers of documents see it.
        is_outdated: returns whether the files belong elsewhere by now. The device asks before its first
            images, and calls the provider again. It must not block.
    """

    directory: Path
    prefix: str
    read_directory: Path
    is_outdated: Callable[[], bool] = _never


class PathProvider(Protocol):
    """Chooses where the files of a staging go. The device calls it in its own thread."""

    def __call__(self, device_name: str) -> PathInfo:
        """Return an existing directory, and a prefix that no file in it has yet."""
        ...


class Engine(Protocol):
    """What a RunEngine has."""

    @property
    def md(self) -> Mapping[str, Any]:
        """Return its metadata; `scan_id` is that of the last run."""
        ...

    def subscribe(self, func: Callable[[str, dict[str, Any]], Any], name: str = "all") -> Any:
        """Call `func` with each document of this name."""
        ...


class _Scans:
    """The number of the open run, or of the next one: devices are staged within a run or before it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._open: dict[str, int] = {}
        engine.subscribe(self._start, "start")
        engine.subscribe(self._stop, "stop")

    def _start(self, _: str, document: dict[str, Any]) -> None:
        self._open[document["uid"]] = int(document["scan_id"])

    def _stop(self, _: str, document: dict[str, Any]) -> None:
        self._open.pop(document["run_start"], None)

    @property
    def open_number(self) -> int | None:
        """Return the number of the open run, of the last one if there are several, or None."""
        return next(reversed(list(self._open.values())), None)

    @property
    def next_number(self) -> int:
        """Return the probable number of the next run. The plan may choose another."""
        return int(self._engine.md.get("scan_id", 0)) + 1


class DirectoryPaths(PathProvider):
    """Files in one directory, named by the device and a number: `<directory>/<device>_00001_0.h5`.

    With a RunEngine the number is that of the scan, in a directory of its own:
    `<directory>/scan_00042/<device>_0.h5`. A prefix that exists already gets a letter appended.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        read_directory: str | Path | None = None,
        engine: Engine | None = None,
    ) -> None:
        """`directory` as the driver sees it, `read_directory` as this process sees it, if that differs.

        `engine` is the RunEngine; the files are of its open run, or of the next one, whatever its number.
        """
        self._write = Path(directory).expanduser().absolute()
        self._read = Path(read_directory or directory).expanduser().absolute()
        self._scans = _Scans(engine) if engine is not None else None

    def __call__(self, device_name: str) -> PathInfo:
        """Make the directory. Raises `AcquisitionError` when that is impossible."""
        device = re.sub(r"[^\w.-]", "_", device_name).lstrip(".") or "detector"
        is_outdated = _never
        if self._scans is None:
            below, prefix = Path(), self._numbered(device)
        else:
            number = self._scans.open_number
            if number is None:
                number = self._scans.next_number
                is_outdated = partial(self._is_another_open, number)
            below = Path(f"scan_{number:05d}")
            prefix = f"{device}_"
        read = self._read / below
        try:
            read.mkdir(parents=True, exist_ok=True)
            taken = [path.name for path in read.iterdir()]
        except OSError as error:
            raise AcquisitionError(
                mismatch(
                    device_name, "a directory that this process may write to", f"{read}: {error.strerror}"
                )
            ) from error
        return PathInfo(self._write / below, _free(prefix, taken), read, is_outdated)

    def _is_another_open(self, number: int) -> bool:
        assert self._scans is not None
        return self._scans.open_number not in (None, number)

    def _numbered(self, device: str) -> str:
        """Return the prefix with the number after the highest that exists."""
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


def provider_of(paths: PathProvider | str | Path) -> PathProvider:
    """Return a provider of paths in a directory, or `paths` itself. Raises `SettingError`."""
    if isinstance(paths, str | Path):
        return DirectoryPaths(paths)
    if not callable(paths):
        expected = "a directory, or a function that returns a PathInfo"
        raise SettingError(mismatch("paths", expected, repr(paths)))
    return paths


def _free(prefix: str, taken: list[str]) -> str:
    """Return `prefix`, with letters before its last `_` if it exists already."""
    stem, candidate, n = prefix.removesuffix("_"), prefix, 0
    while any(re.match(re.escape(candidate) + r"(\d|Meta|Master|Published|Part\d)", name) for name in taken):
        candidate = f"{stem}{_letters(n)}_"
        n += 1
    return candidate


def _letters(n: int) -> str:
    """Return a, b, ..., z, aa, ab, ... for n = 0, 1, ..."""
    text = ""
    n += 1
    while n:
        n, rest = divmod(n - 1, 26)
        text = chr(ord("a") + rest) + text
    return text
