"""Requests to a simulated source (REQ/REP, one JSON object each way): its software trigger and settings.

The source answers every request: `{"status": "ok", ...}`, or `{"status": "error", "reason": "..."}` for one
that it cannot carry out, which changes nothing. The source parses with `parse_request`;
`stddaq.client.simulator` asks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from stddaq.errors import StdDaqError
from stddaq.text import mismatch, shown
from stddaq.wire.fields import Check, FieldError, integer, message_of, number, optional

MAX_BURST = 2**32
MAX_RATE_HZ = 1e6
MAX_EXPOSURE_S = 1e6


class RequestError(StdDaqError):
    """A request that cannot be carried out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Settings:
    """Settings from the next image on; those not given stay."""

    rate: float | None = None
    """Images per second, within a burst or free-running; 0: as fast as possible."""
    exposure_time: float | None = None
    """Seconds; only announced in the metadata."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trigger(_Settings):
    """Change settings, and publish one burst.

    Answered with `first_id` and `n_images` of the burst, and the state, before it is published.
    """

    command: Literal["trigger"] = "trigger"
    n_images: int | None = None
    """None: the configured burst."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Configure(_Settings):
    """Change settings."""

    command: Literal["configure"] = "configure"
    burst: int | None = None
    """Images per trigger."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rearm:
    """Restart the image ids, as a detector does when it is re-armed."""

    command: Literal["rearm"] = "rearm"
    first_id: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plain:
    """`start` and `stop` free-running publication, or ask for the `status`."""

    command: Literal["start", "stop", "status"]


Request = Trigger | Configure | Rearm | Plain
_TYPES: Mapping[str, type[Request]] = {
    "trigger": Trigger,
    "configure": Configure,
    "rearm": Rearm,
    "start": Plain,
    "stop": Plain,
    "status": Plain,
}
_CHECKS: Mapping[str, Check] = {
    "rate": optional(number(MAX_RATE_HZ, zero=True)),
    "exposure_time": optional(number(MAX_EXPOSURE_S, zero=True)),
    "n_images": optional(integer(1, MAX_BURST)),
    "burst": optional(integer(1, MAX_BURST)),
    "first_id": integer(0, 2**64 - 1),
}


def parse_request(message: bytes) -> Request:
    """Decode one request. Raises `RequestError`."""
    try:
        content = json.loads(message)
    except (ValueError, RecursionError) as error:
        raise RequestError("expected a JSON object, got no JSON") from error
    if not isinstance(content, dict):
        raise RequestError(f"expected a JSON object, got {shown(content)}")
    command = content.get("command")
    if not isinstance(command, str) or command not in _TYPES:
        found = shown(command) if "command" in content else "nothing"
        raise RequestError(mismatch("command", f"one of {', '.join(_TYPES)}", found))
    try:
        return message_of(_TYPES[command], content, _CHECKS)
    except FieldError as error:
        raise RequestError(str(error)) from error
