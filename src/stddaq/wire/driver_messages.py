"""The driver's WebSocket messages: JSON text frames, one object each.

Clients send commands and receive status messages. The names are those of the std_daq driver; clients written
for the C++ driver read only `status`, `count` and `reason`. The driver parses with `parse_command`.

Only `nexus` of a command is validated by pydantic, which is imported when the first one arrives: it takes
11 MB of memory.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from stddaq.errors import StdDaqError
from stddaq.text import mismatch, nesting_depth, shown
from stddaq.validation import explain
from stddaq.wire.fields import (
    Check,
    FieldError,
    FieldErrorType,
    Message,
    boolean,
    integer,
    invalid,
    is_unicode,
    message_of,
    number,
    optional,
    text,
)
from stddaq.wire.run_defaults import DEFAULT_FILE_PREFIX, DEFAULT_N_IMAGE

STATUS_PERIOD_S = 0.1
# Encoding what is nested deeper could exceed the stack.
MAX_METADATA_DEPTH = 32
# The reason of every `rejected`, as the C++ driver sends it.
BUSY_REASON = "driver is busy!"

Status = Literal[
    "idle",
    "started",
    "creating_file",
    "file_created",
    "waiting_for_first_image",
    "recording",
    "stop",
    "saving_file",
    "file_saved",
    "error",
    "rejected",
]
# The states of a run, in order. `error` may follow any of them.
RUN_STATES: tuple[str, ...] = tuple(s for s in get_args(Status) if s not in ("idle", "error", "rejected"))
# The values of `error` in a reply of status `error` or `rejected`, so that programs need not parse `reason`.
ErrorType = Literal[
    "invalid_json",
    "invalid_message",
    "unknown_command",
    "missing_field",
    "invalid_field",
    "unknown_field",
    "path_not_allowed",
    "path_not_usable",
    "file_exists",
    "disk_full",
    "user_not_allowed",
    "busy",
    "no_run",
]


class CommandError(StdDaqError, ValueError):
    """A command cannot be carried out. `error` is the type of the refusal."""

    def __init__(self, error: ErrorType, reason: str) -> None:
        super().__init__(reason)
        self.error: ErrorType = error


@dataclass(frozen=True, slots=True, kw_only=True)
class StartCommand:
    """Start a run, or only check whether it could be started (extension).

    The fields from `overwrite` on are extensions; the C++ driver ignores them.
    """

    command: Literal["start", "check"] = "start"
    path: str
    """Existing directory, absolute."""
    file_prefix: str = DEFAULT_FILE_PREFIX
    n_image: int = DEFAULT_N_IMAGE
    writer_id: int = 0
    """uid that owns the files; 0: that of the writers."""
    start_id: int = 0
    """Images with a lower id are not recorded."""
    overwrite: bool = False
    """Allow existing files to be replaced."""
    strict: bool = False
    """End the run as `error` when an image was overwritten in the ring buffer before it was written."""
    end_on_restart: bool = False
    """End the run as `error` when the image ids restart (camera restarted, detector re-armed)."""
    first_image_timeout: float | None = None
    """Seconds in `waiting_for_first_image` after which the run is an `error`; None: no limit."""
    nexus: dict[str, Any] | None = None
    """Metadata of the run, what is set of the keys of `RunMetadata`; with a `definition` a file of it is made
    when all its values are known."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """What else the client wants to keep with the run, in any form."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnotateCommand:
    """Add metadata to the run that is being recorded (extension).

    Values replace those of `start` and of earlier commands, single values of `nexus` and keys of `metadata`.
    """

    command: Literal["annotate"] = "annotate"
    nexus: dict[str, Any] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainCommand:
    """A command without fields; those that it has are ignored.

    `stop` ends the run and is valid in every state. `status` and `last_result` are queries. `repair` repairs
    the files that the writers of the last run did not close.
    """

    command: Literal["stop", "status", "last_result", "repair"]


DriverCommand = StartCommand | AnnotateCommand | PlainCommand


def parse_command(frame: str | bytes) -> DriverCommand:
    """Decode one WebSocket frame. Raises `CommandError`."""
    content = decode_command(_TYPES, frame)
    kind = _TYPES[content["command"]]
    if kind is PlainCommand:
        return PlainCommand(command=content["command"])
    return checked_command(kind, content, _CHECKS)


def decode_command(names: Collection[str], frame: str | bytes) -> dict[str, Any]:
    """Decode one WebSocket frame with one of the commands `names`. Raises `CommandError`."""
    if isinstance(frame, bytes):
        raise CommandError("invalid_message", "expected a text frame with a JSON object, got a binary frame")
    try:
        content = json.loads(frame)
    except (ValueError, RecursionError) as error:
        raise CommandError("invalid_json", f"expected a JSON object, got no JSON ({error})") from error
    if not isinstance(content, dict):
        raise CommandError("invalid_message", f"expected a JSON object, got {shown(content)}")
    expected = f"one of {', '.join(names)}"
    if "command" not in content:
        raise CommandError("missing_field", mismatch("command", expected, "nothing"))
    command = content["command"]
    if not isinstance(command, str) or command not in names:
        kind: ErrorType = "unknown_command" if isinstance(command, str) else "invalid_field"
        raise CommandError(kind, mismatch("command", expected, shown(command)))
    return content


def checked_command(kind: type[Message], content: dict[str, Any], checks: Mapping[str, Check]) -> Message:
    """Return the command of this content. Raises `CommandError`."""
    try:
        return message_of(kind, content, checks)
    except FieldError as error:
        raise CommandError(error.error, str(error)) from error


_TYPES: Mapping[str, type[DriverCommand]] = {
    "start": StartCommand,
    "check": StartCommand,
    "annotate": AnnotateCommand,
    "stop": PlainCommand,
    "status": PlainCommand,
    "last_result": PlainCommand,
    "repair": PlainCommand,
}


def _nexus(name: str, value: Any) -> dict[str, Any]:
    # Not at the top; see the module.
    from pydantic import ValidationError

    from stddaq.run_metadata import RunMetadata

    try:
        nexus = RunMetadata.model_validate(value)
    except ValidationError as error:
        mistake = error.errors(include_url=False)[0]
        mistake["loc"] = (name, *mistake["loc"])
        kind = _ERROR_TYPES.get(mistake["type"], "invalid_field")
        raise FieldError(kind, explain(mistake, name)) from error
    # A client could read files through it that only the writers may read.
    if nexus.detector.mask_file is not None:
        raise invalid(name, "no detector.mask_file, which belongs into the configuration", value)
    return nexus.model_dump(mode="json", exclude_unset=True)


# How pydantic calls the mistakes that have a type of their own.
_ERROR_TYPES: Mapping[str, FieldErrorType] = {"missing": "missing_field", "extra_forbidden": "unknown_field"}


def _metadata(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise invalid(name, "an object", value)
    is_usable = nesting_depth(value) <= MAX_METADATA_DEPTH
    try:
        is_usable = is_usable and is_unicode(json.dumps(value, ensure_ascii=False, allow_nan=False))
    except ValueError:  # A number that is not finite, which JSON does not have.
        is_usable = False
    if not is_usable:
        levels = f"nested at most {MAX_METADATA_DEPTH} levels deep"
        raise invalid(name, f"an object of finite numbers and Unicode texts, {levels}", value)
    return value


def _is_path(path: str) -> bool:
    return path.startswith("/") and "\0" not in path and is_unicode(path)


def _is_prefix(prefix: str) -> bool:
    # NAME_MAX is 255 bytes; the writer's number, `Master` and `.h5` follow the prefix.
    return bool(
        prefix
        and not prefix.startswith(".")
        and "/" not in prefix
        and "\0" not in prefix
        and is_unicode(prefix)
        and len(prefix.encode()) <= 230
    )


# `decode_command` has checked `command`.
_CHECKS: Mapping[str, Check] = {
    "path": text(_is_path, "the absolute path of an existing directory"),
    "file_prefix": text(
        _is_prefix, "the beginning of a file name: not empty, no '/', not starting with '.', up to 230 bytes"
    ),
    "n_image": integer(0, 2**63 - 1),
    "writer_id": integer(0, 2**31 - 1),
    "start_id": integer(0, 2**64 - 1),
    "overwrite": boolean,
    "strict": boolean,
    "end_on_restart": boolean,
    "first_image_timeout": optional(number(1e9, zero=False)),
    "nexus": optional(_nexus),
    "metadata": _metadata,
}
