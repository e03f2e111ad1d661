"""The driver's WebSocket messages: JSON text frames, one object each.

Clients send commands and receive status messages. The names are those of the std_daq driver; clients written
for the C++ driver read only `status`, `count` and `reason`. The driver parses with `parse_command`; the
client composes with the same models.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator

from stddaq.errors import StdDaqError
from stddaq.run_metadata import RunMetadata
from stddaq.text import mismatch, shown
from stddaq.validation import explain_first

DEFAULT_FILE_PREFIX = "file"
# Largest image id of a GigaFRoST, and the std_daq's default for "until stopped".
DEFAULT_N_IMAGE = 2**24 - 1
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


Command = TypeVar("Command", bound=BaseModel)


class CommandError(StdDaqError, ValueError):
    """A command cannot be carried out. `error` is the type of the refusal."""

    def __init__(self, error: ErrorType, reason: str) -> None:
        super().__init__(reason)
        self.error: ErrorType = error


def _without_file(nexus: RunMetadata) -> RunMetadata:
    # A client could read files through it that only the writers may read.
    if nexus.detector.mask_file is not None:
        raise ValueError("no detector.mask_file, which belongs into the configuration")
    return nexus


def _storable(metadata: dict[str, Any]) -> dict[str, Any]:
    is_usable = _depth(metadata) <= MAX_METADATA_DEPTH
    try:
        is_usable = is_usable and _is_unicode(json.dumps(metadata, ensure_ascii=False, allow_nan=False))
    except ValueError:  # A number that is not finite, which JSON does not have.
        is_usable = False
    if not is_usable:
        raise ValueError(
            f"an object of finite numbers and Unicode texts, nested at most {MAX_METADATA_DEPTH} levels deep"
        )
    return metadata


def _depth(content: object) -> int:
    depth, level = 0, [content]
    while level := [node for node in level if isinstance(node, dict | list)]:
        depth += 1
        level = [child for node in level for child in (node.values() if isinstance(node, dict) else node)]
    return depth


Nexus = Annotated[RunMetadata, AfterValidator(_without_file)]
FreeMetadata = Annotated[dict[str, Any], AfterValidator(_storable)]


class StartCommand(BaseModel):
    """Start a run, or only check whether it could be started (extension).

    The fields from `overwrite` on are extensions; the C++ driver ignores them.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    command: Literal["start", "check"] = "start"
    path: str
    """Existing directory, absolute."""
    file_prefix: str = DEFAULT_FILE_PREFIX
    n_image: Annotated[int, Field(ge=0, lt=2**63)] = DEFAULT_N_IMAGE
    writer_id: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """uid that owns the files; 0: that of the writers."""
    start_id: Annotated[int, Field(ge=0, lt=2**64)] = 0
    """Images with a lower id are not recorded."""
    overwrite: bool = False
    """Allow existing files to be replaced."""
    strict: bool = False
    """End the run as `error` when an image was overwritten in the ring buffer before it was written."""
    end_on_restart: bool = False
    """End the run as `error` when the image ids restart (camera restarted, detector re-armed)."""
    first_image_timeout: Annotated[float, Field(gt=0, le=1e9)] | None = None
    """Seconds in `waiting_for_first_image` after which the run is an `error`; None: no limit."""
    nexus: Nexus | None = None
    """Metadata of the run; with a `definition` a file of it is made when all its values are known."""
    metadata: FreeMetadata = {}
    """What else the client wants to keep with the run, in any form."""

    @field_validator("path")
    @classmethod
    def _absolute(cls, path: str) -> str:
        if not path.startswith("/") or "\0" in path or not _is_unicode(path):
            raise ValueError("the absolute path of an existing directory")
        return path

    @field_validator("file_prefix")
    @classmethod
    def _one_file_name(cls, prefix: str) -> str:
        # NAME_MAX is 255 bytes; the writer's number, `Master` and `.h5` follow the prefix.
        if (
            not prefix
            or "/" in prefix
            or "\0" in prefix
            or prefix.startswith(".")
            or not _is_unicode(prefix)
            or len(prefix.encode()) > 230
        ):
            raise ValueError(
                "the beginning of a file name: not empty, no '/', not starting with '.', up to 230 bytes"
            )
        return prefix


class AnnotateCommand(BaseModel):
    """Add metadata to the run that is being recorded (extension).

    Values replace those of `start` and of earlier commands, single values of `nexus` and keys of `metadata`.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    command: Literal["annotate"] = "annotate"
    nexus: Nexus | None = None
    metadata: FreeMetadata = {}


class PlainCommand(BaseModel):
    """A command without fields.

    `stop` ends the run and is valid in every state. `status` and `last_result` are queries. `repair` repairs
    the files that the writers of the last run did not close.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    command: Literal["stop", "status", "last_result", "repair"]


def parse_command(frame: str | bytes) -> StartCommand | AnnotateCommand | PlainCommand:
    """Decode one WebSocket frame. Raises `CommandError`."""
    return parse_command_of(_MODELS, frame)


def parse_command_of(models: Mapping[str, type[Command]], frame: str | bytes) -> Command:
    """Decode one WebSocket frame with a command of `models`. Raises `CommandError`."""
    if isinstance(frame, bytes):
        raise CommandError("invalid_message", "expected a text frame with a JSON object, got a binary frame")
    try:
        content = json.loads(frame)
    except (ValueError, RecursionError) as error:
        raise CommandError("invalid_json", f"expected a JSON object, got no JSON ({error})") from error
    if not isinstance(content, dict):
        raise CommandError("invalid_message", f"expected a JSON object, got {shown(content)}")
    expected = f"one of {', '.join(models)}"
    if "command" not in content:
        raise CommandError("missing_field", mismatch("command", expected, "nothing"))
    command = content["command"]
    model = models.get(command) if isinstance(command, str) else None
    if model is None:
        kind: ErrorType = "unknown_command" if isinstance(command, str) else "invalid_field"
        raise CommandError(kind, mismatch("command", expected, shown(command)))
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise _command_error(error, model) from error


_MODELS: dict[str, type[StartCommand | AnnotateCommand | PlainCommand]] = {
    "start": StartCommand,
    "check": StartCommand,
    "annotate": AnnotateCommand,
    "stop": PlainCommand,
    "status": PlainCommand,
    "last_result": PlainCommand,
    "repair": PlainCommand,
}


def _is_unicode(text: str) -> bool:
    """Return False for half of a surrogate pair: JSON can hold one, protobuf and file systems cannot."""
    return not any("\ud800" <= c <= "\udfff" for c in text)


def _command_error(error: ValidationError, model: type[BaseModel]) -> CommandError:
    kind: ErrorType = _ERROR_TYPES.get(error.errors(include_url=False)[0]["type"], "invalid_field")
    reason = explain_first(error, "command")
    if kind == "unknown_field" and len(error.errors(include_url=False)[0]["loc"]) == 1:
        reason += f"; expected one of {', '.join(model.model_fields)}"
    return CommandError(kind, reason)


# How pydantic calls the mistakes that have a type of their own.
_ERROR_TYPES: dict[str, ErrorType] = {"missing": "missing_field", "extra_forbidden": "unknown_field"}
