"""Which files belong to a run: `<prefix>0.h5`, `<prefix>1.h5`, ..., `<prefix>Meta.h5`, `<prefix>Master.h5`.

They are found from the directory and the prefix, or from any one of the files. This module reads only names;
`stddaq.files.run` checks whether the files belong together.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stddaq.errors import FileLayoutError
from stddaq.text import mismatch
from stddaq.wire.run_defaults import DEFAULT_FILE_PREFIX

_NUMBER = re.compile(r"0|[1-9]\d*")
_OVER_RAW_FILES = r"Meta|Master|Published\d*|_master|_tomo"


def raw_file_name(prefix: str, writer: int) -> str:
    """Return the name of the raw file of writer `writer`."""
    return f"{prefix}{writer}.h5"


def metadata_file_name(prefix: str) -> str:
    """Return the name of the file of the metadata writer."""
    return f"{prefix}Meta.h5"


def master_file_name(prefix: str) -> str:
    """Return the name of the master file of a run."""
    return f"{prefix}Master.h5"


def nxmx_file_name(prefix: str) -> str:
    """Return the name of the NXmx file of a run, for which programs of crystallography look."""
    return f"{prefix}_master.h5"


def nxtomo_file_name(prefix: str) -> str:
    """Return the name of the NXtomo file of a run, for programs of tomography."""
    return f"{prefix}_tomo.h5"


@dataclass(frozen=True, slots=True)
class RunFiles:
    """The files of one run that exist, and where its master file belongs.

    Attributes:
        raw: in the order of their writers; see `find_run` for missing ones.
        metadata: None when the run has no metadata file.
        master: may not exist yet.
        nxmx: may not exist.
    """

    directory: Path
    prefix: str
    raw: tuple[Path, ...]
    metadata: Path | None
    master: Path
    nxmx: Path


def find_run(path: Path, prefix: str | None = None, *, allow_absent: bool = False) -> RunFiles:
    """Return the run of `prefix` (default "file") in directory `path`, or the run of the file `path`.

    Raises `FileLayoutError` when there are no raw files, or one in the middle is missing; with `allow_absent`
    the missing ones are among the raw files.
    """
    if path.is_dir():
        return _run_of(path, DEFAULT_FILE_PREFIX if prefix is None else prefix, allow_absent)
    if prefix is not None:
        return _run_of(path.parent, prefix, allow_absent)
    candidates = [candidate for candidate in _prefixes(path.name) if _writers(path.parent, candidate)]
    for candidate in candidates:
        numbers = _writers(path.parent, candidate)
        if not _absent(numbers) and path.name in [raw_file_name(candidate, number) for number in numbers]:
            return _run_of(path.parent, candidate, allow_absent)
    if candidates:
        return _run_of(path.parent, candidates[0], allow_absent)
    if not path.exists():
        raise FileLayoutError(f"{path}: is missing, no such file or directory")
    raise FileLayoutError(
        mismatch(
            str(path),
            "<prefix><number>.h5, <prefix>Meta.h5, <prefix>Master.h5 or <prefix>_master.h5 beside raw files",
            "a name of no file of a run",
        )
    )


def files_of_prefix(directory: Path, prefix: str) -> list[str]:
    """Names in `directory` that a run of `prefix` uses, sorted. Raises `OSError`."""
    return _matching(directory, prefix, r"\d+|" + _OVER_RAW_FILES)


def files_over_raw_files(directory: Path, prefix: str) -> list[Path]:
    """Return the files of `prefix` that show or describe raw files, and exist. Raises `OSError`."""
    return [directory / name for name in _matching(directory, prefix, _OVER_RAW_FILES)]


def _matching(directory: Path, prefix: str, rest: str) -> list[str]:
    name = re.compile(re.escape(prefix) + rf"({rest})\.h5")
    return sorted(entry.name for entry in directory.iterdir() if name.fullmatch(entry.name))


def is_ambiguous(path: Path) -> bool:
    """Return whether the name of a raw file fits more than one prefix."""
    return len(_prefixes(path.name)) > 1


def prefix_by_names(path: Path) -> str | None:
    """Return the shortest prefix with which the raw files of all lower numbers exist beside `path`."""
    for prefix in _prefixes(path.name):
        digits = path.name.removeprefix(prefix).removesuffix(".h5")
        if _NUMBER.fullmatch(digits) and all(
            path.with_name(raw_file_name(prefix, i)).exists() for i in range(int(digits))
        ):
            return prefix
    return None


def prefixes_in(directory: Path) -> list[str]:
    """Return the prefixes of the runs that have files in `directory`, sorted. Raises `OSError`."""
    names = [path.name for path in directory.iterdir() if path.name.endswith(".h5")]
    over_raw_files = (metadata_file_name(""), master_file_name(""))
    found = {name.removesuffix(kind) for kind in over_raw_files for name in names if name.endswith(kind)}
    raw = [name for name in names if found.isdisjoint(_prefixes(name))]
    by_names = (prefix_by_names(directory / name) for name in raw)
    return sorted(found | {prefix for prefix in by_names if prefix is not None})


def next_numbered_prefix(directory: Path, prefix: str) -> str:
    """Return `<prefix>_<number>_` with the first number after all that are in `directory`, from 0001 on.

    The last underscore separates the number of the run from those of the writers. Raises `OSError`.
    """
    name = re.compile(re.escape(prefix) + rf"_(\d{{4,}})_(?:Part\d+_)?(?:\d+|{_OVER_RAW_FILES})\.h5")
    matches = (name.fullmatch(path.name) for path in directory.iterdir())
    number = max((int(match[1]) for match in matches if match), default=0) + 1
    return f"{prefix}_{number:04}_"


def in_writer_order(paths: Sequence[Path]) -> list[Path]:
    """Return `paths` sorted by the number at the end of their names, if all have one."""
    numbers = _numbers_behind_common_prefix([path.name for path in paths])
    if numbers is None:
        return list(paths)
    return [path for _, path in sorted(zip(numbers, paths, strict=True), key=lambda pair: pair[0])]


def missing_between(paths: Sequence[Path]) -> Path | None:
    """Return the first raw file that is not among `paths` although files around it are."""
    numbers = _numbers_behind_common_prefix([path.name for path in paths])
    if numbers is None or not paths:
        return None
    absent = _absent(numbers)
    return sibling(paths, absent[0]) if absent else None


def sibling(paths: Sequence[Path], writer: int) -> Path:
    """Return the path of the raw file of `writer` beside `paths`."""
    names = [path.name for path in paths]
    numbers = _numbers_behind_common_prefix(names)
    if numbers is None:
        return paths[0].with_name(f"(raw file of writer {writer})")
    prefix = names[0].removesuffix(".h5").removesuffix(str(numbers[0]))
    return paths[0].with_name(raw_file_name(prefix, writer))


def _run_of(directory: Path, prefix: str, allow_absent: bool) -> RunFiles:
    writers = _writers(directory, prefix)
    if not writers:
        parts = ", ".join(_parts_in(directory, prefix))
        advice = f"; the parts of the run of several drivers have the prefixes {parts}" if parts else ""
        raise FileLayoutError(
            f"{directory / raw_file_name(prefix, 0)}: is missing, no raw files of this prefix{advice}"
        )
    absent = _absent(writers)
    if absent and allow_absent:
        writers = sorted([*writers, *absent])
    elif absent:
        raise FileLayoutError(
            f"{directory / raw_file_name(prefix, absent[0])}: is missing, "
            f"although {raw_file_name(prefix, writers[-1])} exists"
        )
    metadata = directory / metadata_file_name(prefix)
    return RunFiles(
        directory=directory,
        prefix=prefix,
        raw=tuple(directory / raw_file_name(prefix, writer) for writer in writers),
        metadata=metadata if metadata.exists() else None,
        master=directory / master_file_name(prefix),
        nxmx=directory / nxmx_file_name(prefix),
    )


def _parts_in(directory: Path, prefix: str) -> list[str]:
    """Return the prefixes of the parts of a run of several drivers that have files in `directory`, sorted."""
    name = re.compile(rf"({re.escape(prefix)}Part\d+_)\d+\.h5")
    return sorted({match[1] for path in directory.iterdir() if (match := name.fullmatch(path.name))})


def _writers(directory: Path, prefix: str) -> list[int]:
    """Return the numbers of the raw files of `prefix`, sorted."""
    name = re.compile(re.escape(prefix) + rf"({_NUMBER.pattern})\.h5")
    try:
        matches = [name.fullmatch(path.name) for path in directory.iterdir()]
    except OSError as error:
        raise FileLayoutError(f"{directory}: cannot be read: {error.strerror}") from error
    numbers = {int(match[1]) for match in matches if match}
    first_absent = next(i for i in range(len(numbers) + 1) if i not in numbers)
    return sorted(
        number for number in numbers if number < first_absent or not _of_longer_prefix(str(number), numbers)
    )


def _of_longer_prefix(digits: str, numbers: set[int]) -> bool:
    """Return whether `scan10.h5` is writer 0 of `scan1`: if so, all from `scan10.h5` up to it exist."""
    splits = ((digits[:i], digits[i:]) for i in range(1, len(digits)))
    return any(
        _NUMBER.fullmatch(rest) and all(int(f"{head}{i}") in numbers for i in range(int(rest)))
        for head, rest in splits
    )


def _absent(numbers: Sequence[int]) -> list[int]:
    """Return the numbers below the highest that do not exist."""
    return sorted(set(range(max(numbers))) - set(numbers))


def _prefixes(name: str) -> list[str]:
    """Return the prefixes that a file of this name may have, the likeliest first."""
    for kind in (metadata_file_name(""), master_file_name(""), nxmx_file_name("")):
        if name.endswith(kind):
            return [name.removesuffix(kind)]
    stem = name.removesuffix(".h5")
    digits = re.search(r"\d*$", stem)
    n_digits = len(digits[0]) if digits and name.endswith(".h5") else 0
    # `scan10.h5` is writer 10 of `scan`, or writer 0 of `scan1`.
    return [stem[: len(stem) - n] for n in range(n_digits, 0, -1)]


def _numbers_behind_common_prefix(names: Sequence[str]) -> list[int] | None:
    """Return the writers' numbers after a prefix that all names share; None without such a prefix.

    The prefix may end in digits: `scan10.h5` and `scan11.h5` are writers 0 and 1 of `scan1`, unless
    `scan0.h5` is there too.
    """
    readings: list[list[int]] = []
    for prefix in _prefixes(names[0]) if names else ():
        rests = [name.removeprefix(prefix).removesuffix(".h5") for name in names]
        fits = all(name.startswith(prefix) and name.endswith(".h5") for name in names)
        if fits and all(_NUMBER.fullmatch(rest) for rest in rests):
            readings.append([int(rest) for rest in rests])
    return min(readings, key=max, default=None)
