"""`live_stream_configs` of the configuration file: the images that live streams send at each address.

An address maps to `{"type": "forward", "config": []}`, `{"type": "batch", "config": [Y, N]}` or
`{"type": "periodic", "config": [Y, F]}`. All services validate it, as part of the file.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from stddaq.loopback import is_loopback

MAX_IMAGES = 2**31 - 1
MIN_FREQUENCY_HZ, MAX_FREQUENCY_HZ = 1e-5, 1e6

_ALLOWED = {
    "forward": '"config": [] for forward',
    "batch": '"config": [Y, N] for batch, integers with 1 <= Y <= N: Y consecutive images of every N',
    "periodic": (
        '"config": [Y, F] for periodic, Y an integer of 1 or more, F a number from 1e-5 to 1e6: '
        "Y consecutive images, F times a second"
    ),
}


class LiveStreamSetting(BaseModel):
    """The selection of images for one address; valid by construction."""

    model_config = ConfigDict(strict=True, frozen=True, extra="allow")

    type: Literal["forward", "batch", "periodic"]
    config: list[Any] = Field(default_factory=list)

    @model_validator(mode="after")
    def _possible(self) -> LiveStreamSetting:
        numbers = self.config
        if self.type == "forward":
            fits = not numbers
        elif self.type == "batch":
            fits = len(numbers) == 2 and all(map(_is_count, numbers)) and numbers[0] <= numbers[1]
        else:
            fits = len(numbers) == 2 and _is_count(numbers[0]) and _is_frequency(numbers[1])
        if not fits:
            raise ValueError(_ALLOWED[self.type])
        return self

    def __str__(self) -> str:
        return " ".join([self.type, *map(str, self.config)])


def is_local_stream(address: str) -> bool:
    """Return whether only this machine can receive the live stream at `address`."""
    scheme, _, place = address.partition("://")
    return scheme == "tcp" and is_loopback(place.rpartition(":")[0].strip("[]"))


def _is_count(value: object) -> bool:
    return type(value) is int and 1 <= value <= MAX_IMAGES


def _is_frequency(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) and MIN_FREQUENCY_HZ <= value <= MAX_FREQUENCY_HZ
