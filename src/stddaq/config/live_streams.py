"""`live_stream_configs` of the configuration file: the images that live streams send at each address.

An address maps to `{"type": "forward", "config": []}`, `{"type": "batch", "config": [Y, N]}` or
`{"type": "periodic", "config": [Y, F]}`, and to keys for single consumers, which only stddaq knows. All
services validate it, as part of the file.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

from stddaq.loopback import is_loopback
from stddaq.text import shown

if TYPE_CHECKING:
    from stddaq.config.schema import ChannelName, ScanIndex

HeaderKey = Literal["pulse_id", "source", "is_good_frame", "detector_name", "image_attributes"]
# What an image is for a tomography: 0 dark, 1 flat, 2 projection. Consumers skip those with other numbers.
PROJECTION = 2
# Fields of `LiveStreamSetting` and `DetectorConfig` that are no keys of the file.
NO_KEYS = ("others", "text", "etag")


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveStreamSetting:
    """The images for one address, and how they are sent.

    Attributes:
        header: further keys of each array-1.0 header.
        scan_index: that of `image_attributes` from now on.
        frame: `frame` of the array-1.0 header: the image id, or counted from the first image since
            `scan_index` has changed.
        socket: `pub` sends each image to all viewers, `push` to the next one that is ready.
        channel: name of the bsread channel.
    """

    type: Literal["forward", "batch", "periodic"]
    config: list[Any] = field(default_factory=list)
    header: list[HeaderKey] = field(default_factory=list)
    scan_index: ScanIndex = PROJECTION
    frame: Literal["image_id", "since_scan"] = "image_id"
    socket: Literal["pub", "push"] = "pub"
    channel: ChannelName | None = None

    # The unknown keys.
    others: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return all keys as in the configuration file."""
        return {key: getattr(self, key) for key in _KEYS} | self.others

    def __str__(self) -> str:
        of_consumers = {key: getattr(self, key) for key in _KEYS[2:]}
        usual = LiveStreamSetting(type=self.type)
        others = [f"{k}={shown(v)}" for k, v in of_consumers.items() if v != getattr(usual, k)]
        return " ".join([self.type, *map(str, self.config), *others])


_KEYS = tuple(key.name for key in fields(LiveStreamSetting) if key.name not in NO_KEYS)


def is_local_stream(address: str) -> bool:
    """Return whether only this machine can receive the live stream at `address`."""
    scheme, _, place = address.partition("://")
    return scheme == "tcp" and is_loopback(place.rpartition(":")[0].strip("[]"))
