"""The keys of array-1.0 headers that single consumers need, by the setting of the stream."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from stddaq.config import DetectorConfig
from stddaq.config.live_streams import HeaderKey, LiveStreamSetting
from stddaq.dataplane.metadata import ImageMetadata, is_good

_OF_GIGAFROST = ("scan_id", "scan_time", "sync_time", "frame_timestamp", "exposure_time")


class HeaderKeys:
    """The keys of one setting. Call `begin` for every image, in the order of the stream."""

    def __init__(self, config: DetectorConfig, setting: LiveStreamSetting, first_id: int | None) -> None:
        """`first_id`: of the first image with this `scan_index`; None if it has not come yet."""
        self._name, self._setting = config.detector_name, setting
        self._counts_since_scan = setting.frame == "since_scan"
        self.first_id = first_id
        self._values: list[tuple[HeaderKey, Callable[[ImageMetadata], Any]]] = [
            (key, _VALUES.get(key, self._own(key))) for key in setting.header
        ]

    def _own(self, key: HeaderKey) -> Callable[[ImageMetadata], Any]:
        return self._attributes if key == "image_attributes" else lambda _: self._name

    def begin(self, image_id: int) -> None:
        """Note an image that is taken. With lower ids a count starts again."""
        if self.first_id is None or image_id < self.first_id:
            self.first_id = image_id

    def frame(self, image_id: int) -> int:
        """Return `frame` of an image: lost images leave gaps, so that projections keep their angles."""
        if self._counts_since_scan and self.first_id is not None:
            return max(0, image_id - self.first_id)
        return image_id

    def text(self, metadata: ImageMetadata) -> str:
        """Return the keys as they follow the others; empty if there are none."""
        return "".join(f', "{key}":{json.dumps(value(metadata))}' for key, value in self._values)

    def _attributes(self, metadata: ImageMetadata) -> Mapping[str, int]:
        attributes = {"scan_index": self._setting.scan_index, "image_number": metadata.image_id}
        if metadata.WhichOneof("image_metadata") == "gf":
            attributes |= {name: getattr(metadata.gf, name) for name in _OF_GIGAFROST}
        return attributes


_VALUES: Mapping[HeaderKey, Callable[[ImageMetadata], Any]] = {
    "pulse_id": lambda metadata: metadata.image_id,
    "is_good_frame": is_good,
}
