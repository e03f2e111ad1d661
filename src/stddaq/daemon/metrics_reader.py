"""Reads the metrics pages of other processes, and trusts none of them.

A page may be written by another version of stddaq, cut, or made by hand. One that is not valid is rejected as
a whole, with a reason.
"""

from __future__ import annotations

import json
import math
import os
import stat
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stddaq.daemon.metrics import TABLE, Series
from stddaq.daemon.metrics_page import (
    FIXED,
    MAGIC,
    SCHEMA_AT,
    STATE,
    directory_of,
    is_locked,
    page_name,
    silent_after_ns,
    values_at,
)
from stddaq.errors import StdDaqError
from stddaq.open_directory import OpenDirectory
from stddaq.text import mismatch, os_error_text, shown

SUFFIX = ".metrics"
MAX_PAGES = 256
MAX_VALUES = 1024
MAX_SCHEMA_BYTES = 256 * 1024
MAX_LABEL_LENGTH = 100
MAX_PERIOD_NS = 3600 * 10**9
# Updates come five times a second, and reading takes microseconds.
_ATTEMPTS = 20
_LABELS = ("detector", "service", "instance_id")


class PageError(StdDaqError, ValueError):
    """A file is no valid metrics page."""


@dataclass(frozen=True, slots=True)
class Page:
    """What a metrics page says, and whether its process runs."""

    service: str
    instance_id: str
    version: str
    config_etag: str
    """Of the configuration file that the service has read at its start; empty if it has read none."""
    pid: int
    start_ticks: int
    started_s: float
    """Start of the service, seconds since 1970."""
    heartbeat_s: float
    """Time of the heartbeat, when the values were written, of the monotonic clock."""
    age_s: float
    """Age of the heartbeat."""
    silent_after_s: float
    """Age of the heartbeat from which the service is silent."""
    is_running: bool
    """Whether the process that writes the page exists."""
    values: Mapping[Series, float]


@dataclass(frozen=True, slots=True)
class Pages:
    """The pages of one detector.

    Attributes:
        valid: the pages.
        rejected: why the other files are no pages, by file name.
    """

    valid: list[Page] = field(default_factory=list)
    rejected: dict[str, str] = field(default_factory=dict)


def detectors_with_pages(directory: Path) -> list[str]:
    """Return the names of the detectors that have metrics pages in an ipc directory. Raise `OSError`."""
    names = (path.name for path in directory.iterdir() if path.is_dir())
    return sorted(name.removesuffix(SUFFIX) for name in names if name.endswith(SUFFIX) and name != SUFFIX)


def read_pages(detector_name: str, *, of_any_user: bool = False) -> Pages:
    """Read all pages of a detector. There are none before its first service runs.

    A directory that belongs to another user than this one and root is rejected, unless `of_any_user`.
    """
    pages = Pages()
    path = directory_of(detector_name)
    try:
        with OpenDirectory(path, follow=False) as directory:
            owner = os.fstat(directory.fd).st_uid
            if owner not in (0, os.geteuid()) and not of_any_user:
                expected = f"a directory of root or of uid {os.geteuid()}"
                raise PageError(mismatch(str(path), expected, f"one of uid {owner}"))
            for name in _names(directory):
                _read_into(pages, directory, name, detector_name)
    except FileNotFoundError:
        pass
    except OSError as error:
        pages.rejected[path.name] = os_error_text(error)
    except PageError as error:
        pages.rejected[path.name] = str(error)
    return pages


def _names(directory: OpenDirectory) -> list[str]:
    # Pages that are still being made begin with a dot.
    names = [name for name in directory.names() if not name.startswith(".")]
    if len(names) > MAX_PAGES:
        raise PageError(mismatch(str(directory.path), f"at most {MAX_PAGES} pages", f"{len(names)}"))
    return names


def _read_into(pages: Pages, directory: OpenDirectory, name: str, detector_name: str) -> None:
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory.fd)
    except FileNotFoundError:
        return  # Its service has just ended.
    except OSError as error:
        pages.rejected[name] = str(error.strerror)
        return
    try:
        pages.valid.append(_read(fd, name, detector_name))
    except (OSError, PageError) as error:
        pages.rejected[name] = str(error)
    finally:
        os.close(fd)


def _read(fd: int, name: str, detector_name: str) -> Page:
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise PageError(mismatch("page", "a regular file", "another one"))
    fixed = _exactly(fd, FIXED.size, 0)
    magic, pid, start_ticks, started_ns, period_ns, schema_length = FIXED.unpack(fixed)
    if magic != MAGIC:
        raise PageError(mismatch("page", "stddaqm1 at its beginning", repr(fixed[:8])))
    if schema_length > MAX_SCHEMA_BYTES or not 0 < period_ns <= MAX_PERIOD_NS or pid >= 2**31:
        raise PageError(mismatch("page", "a schema, a period and a pid in their limits", "others"))
    schema = _schema(_exactly(fd, schema_length, SCHEMA_AT))
    labels = schema["labels"]
    if labels["detector"] != detector_name or page_name(labels["service"], labels["instance_id"]) != name:
        raise PageError(mismatch("page", f"labels of {detector_name} and {name}", shown(labels)))
    is_running = is_locked(fd)
    heartbeat_ns, values = _values(fd, values_at(schema_length), len(schema["series"]))
    return Page(
        service=labels["service"],
        instance_id=labels["instance_id"],
        version=schema["version"],
        config_etag=schema["config_etag"],
        pid=pid,
        start_ticks=start_ticks,
        started_s=started_ns / 1e9,
        heartbeat_s=heartbeat_ns / 1e9,
        age_s=max(0.0, (time.monotonic_ns() - heartbeat_ns) / 1e9),
        silent_after_s=silent_after_ns(period_ns) / 1e9,
        is_running=is_running,
        values=dict(zip(schema["series"], values, strict=True)),
    )


def _exactly(fd: int, n_bytes: int, offset: int) -> bytes:
    content = os.pread(fd, n_bytes, offset)
    if len(content) != n_bytes:
        raise PageError(mismatch("page", f"{n_bytes} bytes at {offset}", f"{len(content)}"))
    return content


def _values(fd: int, offset: int, n_values: int) -> tuple[int, tuple[float, ...]]:
    """Return the heartbeat and the values of one generation."""
    copy = struct.Struct(f"={n_values}d")
    for _ in range(_ATTEMPTS):
        heartbeat_ns, n_written, generation = STATE.unpack(_exactly(fd, STATE.size, FIXED.size))
        if n_written != n_values:
            raise PageError(mismatch("page", f"{n_values} values", f"{n_written}"))
        values = copy.unpack(_exactly(fd, copy.size, offset + generation % 2 * copy.size))
        if STATE.unpack(_exactly(fd, STATE.size, FIXED.size))[2] == generation:
            if not all(map(math.isfinite, values)):
                raise PageError(mismatch("page", "finite values", "others"))
            return heartbeat_ns, values
    raise PageError(mismatch("page", "values that stay for some microseconds", "ever new ones"))


def _schema(encoded: bytes) -> dict[str, Any]:
    """Return the schema with its series. Raise `PageError`."""
    try:
        schema = json.loads(encoded)
    except (ValueError, RecursionError) as error:
        raise PageError(mismatch("schema of the page", "JSON", str(error))) from error
    if not isinstance(schema, dict) or not isinstance(schema.get("series"), list):
        raise PageError(mismatch("schema of the page", "an object with a list of series", shown(schema)))
    labels, rows = schema.get("labels"), schema["series"]
    if not isinstance(labels, dict) or sorted(labels) != sorted(_LABELS):
        raise PageError(mismatch("labels of the page", ", ".join(_LABELS), shown(labels)))
    if not all(map(_is_label, (*labels.values(), schema.get("version"), schema.get("config_etag")))):
        raise PageError(mismatch("labels of the page", "short printable texts", shown(labels)))
    if len(rows) > MAX_VALUES:
        raise PageError(mismatch("schema of the page", f"at most {MAX_VALUES} series", f"{len(rows)}"))
    series = [_series(row) for row in rows]
    if len(set(series)) != len(series):
        raise PageError(mismatch("schema of the page", "each series once", "one of them twice"))
    return schema | {"series": series}


def _series(row: Any) -> Series:
    if not isinstance(row, list) or not row or not all(map(_is_label, row)):
        raise PageError(mismatch("series of the page", "a list of short printable texts", shown(row)))
    name, *labels = row
    if name not in TABLE or len(labels) != len(TABLE[name].labels):
        raise PageError(
            mismatch("series of the page", "a metric of this version, and its labels", shown(row))
        )
    return Series(TABLE[name], tuple(labels))


def _is_label(text: Any) -> bool:
    return isinstance(text, str) and len(text) <= MAX_LABEL_LENGTH and text.isprintable()
