"""The message of a reduced image."""

from __future__ import annotations

import time
from typing import Any

from stddaq.config import DetectorConfig
from stddaq.dataplane.metadata import GOOD_IMAGE, ImageMetadata, is_good, taken_ns
from stddaq.preview.reduction import Reduced, ReducerName
from stddaq.wire.preview import frame, planes, topic

# Larger integers are strings in JSON, because browsers read numbers as float64.
_LARGEST_EXACT = 2**53


def image_message(
    config: DetectorConfig,
    metadata: ImageMetadata,
    reducer: ReducerName,
    side: int,
    reduced: Reduced,
    levels: tuple[float, float],
    n_overwritten: int,
) -> bytes:
    """Return the message for the ipc socket. `n_overwritten`: images overwritten since the last message."""
    taken = taken_ns(metadata)
    height, width = config.image_shape
    header: dict[str, Any] = {
        "v": 1,
        "detector": config.detector_name,
        "image": _exact(metadata.image_id),
        "taken_ns": str(taken or time.time_ns()),
        "time_is": "taken" if taken else "streamed",
        "status": GOOD_IMAGE if is_good(metadata) else metadata.status,
        "shape": [height, width],
        "dtype": config.dtype.name,
        "origin": [0, 0],
        "bin": side,
        "size": list(reduced.counts.shape),
        "reducer": reducer,
        "type": "uint16",
        "scale": reduced.scale,
        "offset": reduced.offset,
        "codec": "lz4",
        "planes": True,
        "levels": list(levels),
        "n_saturated": reduced.n_saturated,
        "n_masked": reduced.n_masked,
        "n_missing": reduced.n_missing,
        "min": reduced.minimum,
        "max": reduced.maximum,
        "sum": reduced.total,
        "overwritten": n_overwritten,
    }
    return topic(reducer) + frame(header, planes(reduced.counts))


def problem_message(reducer: ReducerName, detector: str, text: str, code: str) -> bytes:
    """Return the message that there are no images, and why."""
    return topic(reducer) + frame({"v": 1, "detector": detector, "error": text, "code": code})


def _exact(number: int) -> int | str:
    return number if number < _LARGEST_EXACT else str(number)
