"""The WebSocket messages of `std_buffer_driver`: commands and states of a replay."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from stddaq.wire.driver_messages import CommandError, decode_command, refusal_of
from stddaq.wire.image_buffer import MAX_ID

ReplayStatus = Literal["idle", "replaying", "stop", "finishing", "finished", "error", "rejected"]
ImageId = Annotated[int, Field(ge=0, le=MAX_ID)]


class StartReplay(BaseModel):
    """Replay stored images.

    The fields from `rate` on are extensions. Without `delay`, `rate` and `as_recorded` images are sent as
    fast as the consumer takes them.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    command: Literal["start"] = "start"
    start_image_id: ImageId
    """The first id; images start at the next one that is stored."""
    end_image_id: ImageId | None = None
    """The last id, inclusive; None: that of the newest image at the start."""
    delay: Annotated[int, Field(ge=0, le=10**9)] = 0
    """Least time between two images in ms."""
    rate: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """Highest rate in Hz."""
    as_recorded: bool = False
    """Send images in the distances of the detector's timestamps."""
    follow: bool = False
    """Go on with new images until `stop`, or up to `end_image_id`."""

    @model_validator(mode="after")
    def _is_possible(self) -> StartReplay:
        if self.end_image_id is not None and self.end_image_id < self.start_image_id:
            raise ValueError(f"end_image_id of {self.start_image_id} or more")
        if (self.delay > 0) + (self.rate is not None) + self.as_recorded > 1:
            raise ValueError("one of delay, rate and as_recorded")
        return self

    @property
    def interval_s(self) -> float:
        """Least time between two images."""
        return 1 / self.rate if self.rate else self.delay / 1000


class PlainReplayCommand(BaseModel):
    """A command without fields. `stop` ends the replay; `status` and `last_result` are queries."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    command: Literal["stop", "pause", "resume", "status", "last_result"]


_MODELS: dict[str, type[StartReplay | PlainReplayCommand]] = {
    "start": StartReplay,
    "stop": PlainReplayCommand,
    "pause": PlainReplayCommand,
    "resume": PlainReplayCommand,
    "status": PlainReplayCommand,
    "last_result": PlainReplayCommand,
}


def parse_replay_command(frame: str | bytes) -> StartReplay | PlainReplayCommand:
    """Decode one WebSocket frame. Raises `CommandError`."""
    content = decode_command(_MODELS, frame)
    model = _MODELS[content["command"]]
    try:
        return model.model_validate(content)
    except ValidationError as error:
        refusal = refusal_of(error)
        if refusal.error == "unknown_field":
            raise CommandError(
                "unknown_field", f"{refusal}; expected one of {', '.join(model.model_fields)}"
            ) from error
        raise refusal from error
