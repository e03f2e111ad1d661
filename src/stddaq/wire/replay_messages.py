"""The WebSocket messages of `std_buffer_driver`: commands and states of a replay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from stddaq.text import mismatch, shown
from stddaq.wire.driver_messages import CommandError, checked_command, decode_command
from stddaq.wire.fields import Check, boolean, integer, number, optional
from stddaq.wire.image_buffer import MAX_ID

ReplayStatus = Literal["idle", "replaying", "stop", "finishing", "finished", "error", "rejected"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StartReplay:
    """Replay stored images.

    The fields from `rate` on are extensions. Without `delay`, `rate` and `as_recorded` images are sent as
    fast as the consumer takes them.
    """

    command: Literal["start"] = "start"
    start_image_id: int
    """The first id; images start at the next one that is stored."""
    end_image_id: int | None = None
    """The last id, inclusive; None: that of the newest image at the start."""
    delay: int = 0
    """Least time between two images in ms."""
    rate: float | None = None
    """Highest rate in Hz."""
    as_recorded: bool = False
    """Send images in the distances of the detector's timestamps."""
    follow: bool = False
    """Go on with new images until `stop`, or up to `end_image_id`."""

    @property
    def interval_s(self) -> float:
        """Least time between two images."""
        return 1 / self.rate if self.rate else self.delay / 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainReplayCommand:
    """A command without fields; those that it has are ignored.

    `stop` ends the replay; `status` and `last_result` are queries.
    """

    command: Literal["stop", "pause", "resume", "status", "last_result"]


_COMMANDS = ("start", "stop", "pause", "resume", "status", "last_result")
# `decode_command` has checked `command`.
_CHECKS: Mapping[str, Check] = {
    "start_image_id": integer(0, MAX_ID),
    "end_image_id": optional(integer(0, MAX_ID)),
    "delay": integer(0, 10**9),
    "rate": optional(number(1e6, zero=False)),
    "as_recorded": boolean,
    "follow": boolean,
}


def parse_replay_command(frame: str | bytes) -> StartReplay | PlainReplayCommand:
    """Decode one WebSocket frame. Raises `CommandError`."""
    content = decode_command(_COMMANDS, frame)
    if content["command"] != "start":
        return PlainReplayCommand(command=content["command"])
    start = checked_command(StartReplay, content, _CHECKS)
    if start.end_image_id is not None and start.end_image_id < start.start_image_id:
        expected = f"an id from start_image_id on, {start.start_image_id} or higher"
        raise CommandError("invalid_field", mismatch("end_image_id", expected, str(start.end_image_id)))
    if (start.delay > 0) + (start.rate is not None) + start.as_recorded > 1:
        expected = "one of delay, rate and as_recorded"
        raise CommandError("invalid_field", mismatch("command", expected, shown(content)))
    return start
