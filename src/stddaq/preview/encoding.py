"""The messages of the preview service."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from stddaq.config import DetectorConfig
from stddaq.dataplane.metadata import GOOD_IMAGE, ImageMetadata, is_good, taken_ns
from stddaq.preview.pictures import Made, Part
from stddaq.preview.quantisation import LARGEST
from stddaq.preview.reduction import Reduced
from stddaq.wire.preview import frame, lz4_block, planes
from stddaq.wire.preview_requests import Request, Still, View, region_key, topic

# Larger integers are strings in JSON, because browsers read numbers as float64.
_LARGEST_EXACT = 2**53
_JPEG_QUALITY = 75
# A JPEG image has 255 steps up to this multiple of the levels; what is brighter is white in any case.
_HEADROOM = 4


def image_message(
    config: DetectorConfig,
    metadata: ImageMetadata,
    view: View,
    made: Made,
    levels: tuple[float, float],
    latest: Mapping[str, Any],
    request: Request | None = None,
) -> bytes:
    """Return the message of a view, to be published under `request` or the view itself.

    `latest`: keys of the header that are not of this view.
    """
    picture, payload = described(made.parts[view], made.whole[view.reducer], view, levels)
    regions = {region_key(region): numbers for region, numbers in made.regions.items()}
    header = {**_origin(config, metadata), **picture, **latest, "regions": regions}
    return frame(header, payload, topic(request or view))


def described(
    part: Part, whole: Reduced, view: View, levels: tuple[float, float]
) -> tuple[dict[str, Any], memoryview | bytes]:
    """Return the keys of the header that describe the reduced image of a view, and its payload."""
    encoding, payload = _jpeg(part.reduced, levels) if view.codec == "jpeg" else _exact_counts(part.reduced)
    header = {
        **_geometry(part),
        "reducer": view.reducer,
        **encoding,
        "levels": list(levels),
        "n_saturated": whole.n_saturated,
        "n_masked": whole.n_masked,
        "n_missing": whole.n_missing,
        "min": whole.minimum,
        "max": whole.maximum,
        "sum": whole.total,
    }
    return header, payload


def pixels_message(
    config: DetectorConfig, metadata: ImageMetadata, request: Still, pixels: np.ndarray
) -> bytes:
    """Return the message with the pixels of an area, in the byte order of the machine."""
    header = _origin(config, metadata) | {"size": list(pixels.shape)}
    return frame(header, pixels.tobytes(), topic(request))


def problem_message(request: Request, detector: str, text: str, code: str) -> bytes:
    """Return the message that there are no images, and why."""
    return frame({"v": 1, "detector": detector, "error": text, "code": code}, topic=topic(request))


def _origin(config: DetectorConfig, metadata: ImageMetadata) -> dict[str, Any]:
    taken = taken_ns(metadata)
    return {
        "v": 1,
        "detector": config.detector_name,
        "image": exact(metadata.image_id),
        "taken_ns": str(taken or time.time_ns()),
        "time_is": "taken" if taken else "streamed",
        "status": GOOD_IMAGE if is_good(metadata) else metadata.status,
        "shape": list(config.image_shape),
        "dtype": config.dtype.name,
    }


def _geometry(part: Part) -> dict[str, Any]:
    return {
        "origin": list(part.origin),
        "bin": part.bin,
        "size": list(part.reduced.counts.shape),
        "degraded": part.is_degraded,
    }


def _exact_counts(reduced: Reduced) -> tuple[dict[str, Any], memoryview]:
    header = {
        "type": "uint16",
        "scale": reduced.scale,
        "offset": reduced.offset,
        "codec": "lz4",
        "planes": True,
    }
    return header, planes(reduced.counts)


def _jpeg(reduced: Reduced, levels: tuple[float, float]) -> tuple[dict[str, Any], bytes]:
    """Return a picture whose squared grey values are counts, so that dark pixels have finer steps."""
    low, high = levels[0], levels[0] + _HEADROOM * (levels[1] - levels[0])
    scale = (high - low) / 255**2
    values = np.arange(65536) * reduced.scale + reduced.offset
    table = np.rint(np.sqrt(np.clip((values - low) / scale, 0, 255**2))).astype(np.uint8)
    counts = reduced.counts
    grey = table[np.minimum(counts, LARGEST)]
    marks = np.where(counts > LARGEST, counts - np.uint16(LARGEST), np.uint16(0)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(grey).save(file, "JPEG", quality=_JPEG_QUALITY)
    header = {
        "type": "uint8",
        "scale": scale,
        "offset": low,
        "codec": "jpeg",
        "planes": False,
        "jpeg_bytes": file.tell(),
    }
    return header, file.getvalue() + bytes(lz4_block(marks.ravel()))


def exact(number: int) -> int | str:
    """Return an integer as JSON that browsers read exactly."""
    return number if number < _LARGEST_EXACT else str(number)
