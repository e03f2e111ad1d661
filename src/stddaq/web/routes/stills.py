"""Single images of `/api/live`, while the ring buffer has them: values of pixels, a preview, a TIFF file."""

from __future__ import annotations

import io
import math
import time
from typing import Annotated

import numpy as np
import tifffile
from fastapi import APIRouter, Query, Request
from pydantic import BaseModel
from starlette.responses import Response

from stddaq.config import DetectorConfig
from stddaq.text import mismatch
from stddaq.web.configurations import Configurations, call
from stddaq.web.errors import ImageNotHeldError, PreviewAbsentError, RequestInvalidError, TooOftenError
from stddaq.web.live.pace import Picture
from stddaq.web.live.previews import Previews, shown_stream
from stddaq.web.responses import described
from stddaq.wire.preview import frame
from stddaq.wire.preview_requests import WHOLE, Area, Content

TIFF_PERIOD_S = 1.0
_MAX_SIDE = 65
_MAX_BROWSERS = 1024

Image = Annotated[int, Query(ge=0, lt=2**64, description="id of an image that browsers were sent")]
Source = Annotated[str, Query(max_length=64, description="stream, as listed by `/api/live/sources`")]
_STATUSES = described(404, 410, 503, 504)


class PixelValues(BaseModel):
    """Values around a pixel; `x` and `y` are the position of the first one. NaN and infinity are null."""

    image: int
    x: int
    y: int
    values: list[list[float | int | None]]


def add_routes(routes: APIRouter, configurations: Configurations, previews: Previews) -> None:
    """Add the routes to `routes`."""
    tiff_times: dict[str, float] = {}

    async def config_of(detector: str | None) -> DetectorConfig:
        return (await call(lambda: configurations.of(detector).read())).config

    async def still(
        config: DetectorConfig, source: str, image: int, content: Content, area: Area = WHOLE
    ) -> Picture:
        picture = await previews.still(shown_stream(config, source), image, content, area)
        if "error" in picture.header:
            is_absent = picture.header.get("code") == "no_preview"
            raise (PreviewAbsentError if is_absent else ImageNotHeldError)(str(picture.header["error"]))
        return picture

    @routes.get("/live/pixel", responses=_STATUSES)
    async def pixel(
        image: Image,
        x: Annotated[int, Query(ge=0)],
        y: Annotated[int, Query(ge=0)],
        n: Annotated[int, Query(ge=1, le=_MAX_SIDE, description="side of the square of pixels")] = 9,
        detector: str | None = None,
        source: Source = "image",
    ) -> PixelValues:
        """Return the values of the pixels around a position, as far as they are in the image."""
        config = await config_of(detector)
        area = _around(x, y, n, config.image_shape)
        picture = await still(config, source, image, "pixels", area)
        values = np.frombuffer(picture.payload, config.dtype).reshape(picture.header["size"])
        listed = [[value if math.isfinite(value) else None for value in row] for row in values.tolist()]
        return PixelValues(image=image, x=area.x, y=area.y, values=listed)

    @routes.get("/live/image", responses=_STATUSES, response_class=Response)
    async def preview(image: Image, detector: str | None = None, source: Source = "image") -> Response:
        """Return an image again, in the format of the WebSocket."""
        picture = await still(await config_of(detector), source, image, "preview")
        header = picture.header | {"skipped": 0, "regions": []}
        return Response(frame(header, picture.payload), media_type="application/octet-stream")

    @routes.get("/live/image.tiff", responses=_STATUSES | described(429), response_class=Response)
    async def tiff(
        request: Request, image: Image, detector: str | None = None, source: Source = "image"
    ) -> Response:
        """Return the full image as a TIFF file; once a second for each address."""
        _limit(tiff_times, request.client.host if request.client else "")
        config = await config_of(detector)
        picture = await still(config, source, image, "pixels")
        pixels = np.frombuffer(picture.payload, config.dtype).reshape(config.image_shape)
        content = await call(lambda: _tiff(pixels, f"{config.detector_name} image {image}"))
        name = f"{config.detector_name}-{image}.tiff"
        headers = {"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"}
        return Response(content, media_type="image/tiff", headers=headers)


def _around(x: int, y: int, n: int, shape: tuple[int, int]) -> Area:
    height, width = shape
    if x >= width or y >= height:
        raise RequestInvalidError(mismatch("x, y", f"a pixel of {width} x {height}", f"{x}, {y}"))
    left, top = max(0, x - n // 2), max(0, y - n // 2)
    return Area(left, top, min(width, x - n // 2 + n) - left, min(height, y - n // 2 + n) - top)


def _tiff(pixels: np.ndarray, description: str) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, photometric="minisblack", description=description, metadata=None)
    return file.getvalue()


def _limit(times: dict[str, float], address: str) -> None:
    now = time.monotonic()
    if now - times.get(address, -TIFF_PERIOD_S) < TIFF_PERIOD_S:
        raise TooOftenError(mismatch("TIFF files", f"one in {TIFF_PERIOD_S:g} s", "another one"))
    if len(times) >= _MAX_BROWSERS:
        times.clear()
    times[address] = now
