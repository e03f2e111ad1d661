"""Requests to a simulated source (REQ/REP, one JSON object each way): its software trigger and settings.

The source answers every request: `{"status": "ok", ...}`, or `{"status": "error", "reason": "..."}` for one
that it cannot carry out, which changes nothing. The source parses with `parse_request`;
`stddaq.client.simulator` asks.
"""

from __future__ import annotations

import json
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from stddaq.errors import StdDaqError
from stddaq.text import mismatch, shown
from stddaq.validation import explain_first

MAX_BURST = 2**32
MAX_RATE_HZ = 1e6
MAX_EXPOSURE_S = 1e6

Burst = Annotated[int, Field(ge=1, le=MAX_BURST)]
Rate = Annotated[float, Field(ge=0, le=MAX_RATE_HZ, allow_inf_nan=False)]
Exposure = Annotated[float, Field(ge=0, le=MAX_EXPOSURE_S, allow_inf_nan=False)]
ImageId = Annotated[int, Field(ge=0, lt=2**64)]


class RequestError(StdDaqError):
    """A request that cannot be carried out."""


class _Request(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class _Settings(_Request):
    """Settings from the next image on; those not given stay."""

    rate: Rate | None = None
    """Images per second, within a burst or free-running; 0: as fast as possible."""
    exposure_time: Exposure | None = None
    """Seconds; only announced in the metadata."""


class Trigger(_Settings):
    """Change settings, and publish one burst.

    Answered with `first_id` and `n_images` of the burst, and the state, before it is published.
    """

    command: Literal["trigger"] = "trigger"
    n_images: Burst | None = None
    """None: the configured burst."""


class Configure(_Settings):
    """Change settings."""

    command: Literal["configure"] = "configure"
    burst: Burst | None = None
    """Images per trigger."""


class Rearm(_Request):
    """Restart the image ids, as a detector does when it is re-armed."""

    command: Literal["rearm"] = "rearm"
    first_id: ImageId = 0


class Plain(_Request):
    """`start` and `stop` free-running publication, or ask for the `status`."""

    command: Literal["start", "stop", "status"]


Request = Trigger | Configure | Rearm | Plain
_ADAPTER: TypeAdapter[Request] = TypeAdapter(Annotated[Request, Field(discriminator="command")])
_COMMANDS = ("trigger", "configure", "rearm", "start", "stop", "status")


def parse_request(message: bytes) -> Request:
    """Decode one request. Raises `RequestError`."""
    try:
        content = json.loads(message)
    except (ValueError, RecursionError) as error:
        raise RequestError("expected a JSON object, got no JSON") from error
    if not isinstance(content, dict):
        raise RequestError(f"expected a JSON object, got {shown(content)}")
    if content.get("command") not in _COMMANDS:
        found = shown(content["command"]) if "command" in content else "nothing"
        raise RequestError(mismatch("command", f"one of {', '.join(_COMMANDS)}", found))
    try:
        return _ADAPTER.validate_python(content)
    except ValidationError as error:
        # The first step is the command.
        raise RequestError(explain_first(error, "command", skip=1)) from error
