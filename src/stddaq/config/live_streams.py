"""`live_stream_configs` of the configuration file: the images that live streams send at each address.

An address maps to `{"type": "forward", "config": []}`, `{"type": "batch", "config": [Y, N]}` or
`{"type": "periodic", "config": [Y, F]}`, and to keys for single consumers, which only stddaq knows. All
services validate it, as part of the file.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from stddaq.loopback import is_loopback
from stddaq.text import shown

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


HeaderKey = Literal["pulse_id", "source", "is_good_frame", "detector_name", "image_attributes"]
# What an image is for a tomography: 0 dark, 1 flat, 2 projection. Consumers skip those with other numbers.
PROJECTION = 2


class LiveStreamSetting(BaseModel):
    """The images for one address, and how they are sent; valid by construction.

    Attributes:
        header: further keys of each array-1.0 header.
        scan_index: that of `image_attributes` from now on.
        frame: `frame` of the array-1.0 header: the image id, or counted from the first image since
            `scan_index` has changed.
        socket: `pub` sends each image to all viewers, `push` to the next one that is ready.
        channel: name of the bsread channel.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="allow")

    type: Literal["forward", "batch", "periodic"]
    config: list[Any] = Field(default_factory=list)
    header: list[HeaderKey] = Field(default_factory=list)
    scan_index: Annotated[int, Field(ge=0, le=MAX_IMAGES)] = PROJECTION
    frame: Literal["image_id", "since_scan"] = "image_id"
    socket: Literal["pub", "push"] = "pub"
    channel: Annotated[str, Field(pattern=r"^[!-~]{1,256}$")] | None = None

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
        if len(set(self.header)) < len(self.header):
            raise ValueError('"header": a list without repetition')
        return self

    def __str__(self) -> str:
        others = self.model_dump(exclude_defaults=True, include=_OF_CONSUMERS)
        return " ".join([self.type, *map(str, self.config), *(f"{k}={shown(v)}" for k, v in others.items())])


_OF_CONSUMERS = {"header", "scan_index", "frame", "socket", "channel"}


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
