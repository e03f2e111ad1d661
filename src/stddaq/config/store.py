"""Read and replace a configuration file, and keep its previous versions.

Readers see the old or the new version, with the mode and owner of the old one. Writers in all processes take
turns by a lock on the history directory. A call may block in the file system without limit, so callers use
threads.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stddaq.config.live_streams import is_local_stream
from stddaq.config.model import DEFAULTS, RIGHTS, DetectorConfig, etag_of, parse_json
from stddaq.config.services import affected_programs, changed_keys, service_mistakes
from stddaq.errors import ConfigError, StdDaqError
from stddaq.new_file import replace_file, write_file
from stddaq.open_directory import OpenDirectory
from stddaq.text import mismatch, os_error_text, shown

# Number of previous versions that are kept.
HISTORY_LIMIT = 100
MAX_MISTAKES = 100
# The REST service takes no longer ones; what an editor or a program left may be of any size.
MAX_VERSION_BYTES = 4 * 2**20
# Sockets, shared memory and files of a deployment are named after them.
_IDENTITY = ("detector_name", "detector_type")
_VERSION = re.compile(r"(\d{8}T\d{6}\.\d{6}Z)-before-(.+)\.json", re.ASCII)
_TIME_FORMAT = "%Y%m%dT%H%M%S.%fZ"


class ConfigUnreadableError(StdDaqError, ValueError):
    """The configuration file cannot be read, or is not valid."""


class ConfigOutdatedError(StdDaqError, RuntimeError):
    """The file has changed since the caller read it."""


class ConfigProtectedError(StdDaqError, PermissionError):
    """A new configuration differs in a key that may be changed only in the file itself."""


class ConfigIdentityError(StdDaqError, ValueError):
    """A new configuration is that of another detector."""


class ConfigWriteError(StdDaqError, OSError):
    """The file system does not allow the configuration to be replaced."""


@dataclass(frozen=True, slots=True)
class StoredConfig:
    """The content of a configuration file, and its tag."""

    content: dict[str, Any]
    config: DetectorConfig
    etag: str


@dataclass(frozen=True, slots=True)
class Change:
    """The effect of replacing a configuration.

    Attributes:
        changed: keys whose value differs from before, sorted.
        picked_up_by: programs that apply the change while they run.
        restarted: programs that `stddaq up` restarts, after the current run.
        previous: file name of the previous version in the history directory; None if nothing changed.
    """

    config: DetectorConfig
    etag: str
    changed: list[str]
    picked_up_by: list[str]
    restarted: list[str]
    previous: str | None


@dataclass(frozen=True, slots=True)
class Version:
    """A previous version.

    Attributes:
        name: file name in the history directory.
        replaced_at, user: when and by whom it was replaced.
        changed: keys whose value the next version changed; None if one of the two cannot be read.
    """

    name: str
    replaced_at: datetime
    user: str
    changed: list[str] | None


class ConfigVersionError(StdDaqError, LookupError):
    """The history has no version of this name."""


class ConfigStore:
    """The configuration file at `path`, which may be a link, and its history `<name>.history` beside it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> StoredConfig:
        """Return the current content of the file. Raise `ConfigUnreadableError`."""
        try:
            text = self.path.read_bytes()
            content = parse_json(text)
            config = DetectorConfig.parse(content)
        except OSError as error:
            raise ConfigUnreadableError(f"{self.path}: cannot be read: {error.strerror}") from error
        except ConfigError as error:
            raise ConfigUnreadableError(f"{self.path}: {error}") from error
        return StoredConfig(content, config, _etag(text))

    def check(self, text: bytes) -> Change:
        """Return what `replace` would change. Raise as it does; nothing changes in any case."""
        content, config = _validated(text)
        try:
            before = self.path.read_bytes()
        except OSError as error:
            raise ConfigUnreadableError(f"{self.path}: cannot be read: {error.strerror}") from error
        return _planned(before, content, config)

    def history(self) -> list[Version]:
        """Return the previous versions, the newest first. Raise `ConfigUnreadableError`."""
        found: list[Version] = []
        try:
            with self._open_history() as history:
                following = _keys(self.path.read_bytes())
                for name in reversed(_versions(history)):
                    content = _keys(_read(history, name))
                    both = content is not None and following is not None
                    changed = changed_keys(content or {}, following or {}) if both else None
                    time, user = _parts(name)
                    found.append(Version(name, time, user, changed))
                    following = content
        except FileNotFoundError:
            return found
        except OSError as error:
            raise ConfigUnreadableError(f"{self.path}: history: {os_error_text(error)}") from error
        return found

    def version(self, name: str) -> dict[str, Any]:
        """Return the content of a version of the history. Raise `ConfigVersionError`."""
        content = None
        try:
            with self._open_history() as history:
                if name in _versions(history):
                    content = _keys(_read(history, name))
        except FileNotFoundError:
            pass
        except OSError as error:
            raise ConfigUnreadableError(f"{self.path}: history: {os_error_text(error)}") from error
        if content is None:
            raise ConfigVersionError(
                mismatch("version", f"a name in the history of {self.path}", shown(name))
            )
        return content

    def _open_history(self) -> OpenDirectory:
        path = Path(os.path.realpath(self.path))
        return OpenDirectory(path.with_name(f"{path.name}.history"), follow=False)

    def replace(self, text: bytes, user: str, expected_etag: str | None = None) -> Change:
        """Replace the file by the configuration `text`, which is JSON.

        Raise `ConfigError` with every mistake, `ConfigOutdatedError` if the file no longer has the expected
        tag, `ConfigProtectedError` if a key differs that decides on rights, `ConfigIdentityError` if the
        detector does, or `ConfigWriteError`. Then nothing has changed.
        """
        content, config = _validated(text)
        path = Path(os.path.realpath(self.path))
        try:
            with _turn(path) as history:
                return _replace(path, history, content, config, user, expected_etag)
        except ConfigProtectedError:
            raise
        except OSError as error:
            raise ConfigWriteError(f"{self.path}: cannot be replaced: {os_error_text(error)}") from error


def _validated(text: bytes) -> tuple[dict[str, Any], DetectorConfig]:
    try:
        content = parse_json(text)
        config = DetectorConfig.parse(content)
    except ConfigError as error:
        mistakes = list(error.mistakes)
    else:
        mistakes = service_mistakes(config)
        if not mistakes:
            return content, config
    hidden = len(mistakes) - MAX_MISTAKES
    mistakes = mistakes[:MAX_MISTAKES] + ([f"and {hidden} more"] if hidden > 0 else [])
    raise ConfigError("; ".join(mistakes), mistakes)


@contextlib.contextmanager
def _turn(path: Path) -> Iterator[OpenDirectory]:
    """Make the history directory of `path`, and hold its lock, which writers of the file take in turn."""
    history = path.with_name(f"{path.name}.history")
    with contextlib.suppress(FileExistsError):
        history.mkdir(mode=0o755)
    with OpenDirectory(history, follow=False) as directory:
        owner = os.fstat(directory.fd).st_uid
        if owner not in (os.geteuid(), path.stat().st_uid, 0):
            expected = f"a directory of uid {os.geteuid()}, of root, or of the owner of the file"
            raise PermissionError(mismatch(str(history), expected, f"one of uid {owner}"))
        lock = directory.open_for_reading()
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield directory
        finally:
            os.close(lock)


def _replace(
    path: Path,
    history: OpenDirectory,
    content: dict[str, Any],
    config: DetectorConfig,
    user: str,
    expected_etag: str | None,
) -> Change:
    before = path.read_bytes()
    if expected_etag not in (None, _etag(before)):
        raise ConfigOutdatedError(f"{path} has changed since it was read; read it again")
    change = _planned(before, content, config)
    if change.etag == _etag(before):
        return change
    after = _text(content)
    kept = f"{datetime.now(UTC):{_TIME_FORMAT}}-before-{user}.json"
    write_file(history, kept, before, like=path.stat())
    replace_file(path, after)
    for oldest in _versions(history)[:-HISTORY_LIMIT]:
        history.remove(oldest)
    return dataclasses.replace(change, previous=kept)


def _planned(before: bytes, content: dict[str, Any], config: DetectorConfig) -> Change:
    """Return the effect of replacing the file `before`; its tag is the same if nothing changes."""
    old_content, old_config = _previous(before)
    changed = changed_keys(old_content, content)
    _check_rights(old_content, content)
    if renamed := [key for key in _IDENTITY if key in old_content and key in changed]:
        key = renamed[0]
        advice = "another detector has a configuration file of its own"
        raise ConfigIdentityError(mismatch(key, shown(old_content[key]), shown(content[key]), advice))
    if old_config is not None and not changed:
        return Change(config, _etag(before), [], [], [], None)
    # If the old file was invalid, no service was using it.
    picked_up_by, restarted = affected_programs(old_config, config) if old_config else ([], [])
    return Change(config, _etag(_text(content)), changed, picked_up_by, restarted, None)


def _text(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


def _check_rights(old: dict[str, Any], new: dict[str, Any]) -> None:
    """Refuse to change who may do what, and to open a live stream to other machines."""
    advice = "only an edit of the file changes it"
    for key in RIGHTS:
        if old.get(key, DEFAULTS[key]) != new.get(key, DEFAULTS[key]):
            raise ConfigProtectedError(mismatch(key, "the value in the file", "another one", advice))
    before, after = old.get("live_stream_configs") or {}, new.get("live_stream_configs") or {}
    for address in after:
        if address not in before and not is_local_stream(address):
            expected = "a new address on the loopback interface"
            raise ConfigProtectedError(
                mismatch(
                    "live_stream_configs", expected, shown(address), "only an edit of the file adds others"
                )
            )


def _versions(history: OpenDirectory) -> list[str]:
    """Return the names of the previous versions, the oldest first; other files are not the store's."""
    listed = history.open_for_reading()
    try:
        return sorted(name for name in os.listdir(listed) if _VERSION.fullmatch(name))  # noqa: PTH208  (a descriptor)
    finally:
        os.close(listed)


def _read(history: OpenDirectory, name: str) -> bytes:
    with history.opened(name) as path, path.open("rb") as file:
        return file.read(MAX_VERSION_BYTES)


def _keys(text: bytes) -> dict[str, Any] | None:
    """Return the content of a version; None if an editor has broken it."""
    try:
        content = parse_json(text)
    except ConfigError:
        return None
    return content if isinstance(content, dict) else None


def _parts(name: str) -> tuple[datetime, str]:
    match = _VERSION.fullmatch(name)
    assert match is not None
    return datetime.strptime(match[1], _TIME_FORMAT).replace(tzinfo=UTC), match[2]


def _previous(text: bytes) -> tuple[dict[str, Any], DetectorConfig | None]:
    """Return the content and configuration to be replaced; no configuration if an editor has broken them."""
    try:
        content = parse_json(text)
        if not isinstance(content, dict):
            return {}, None
        return content, DetectorConfig.parse(content)
    except ConfigError:
        return {}, None


def _etag(text: bytes) -> str:
    return f'"{etag_of(text)}"'
