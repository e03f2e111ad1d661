"""What is asked of the preview service. A request is a topic that is subscribed to, and withdrawn with it.

ZeroMQ thus counts who wants what, and withdraws the requests of a process that ends. Images are published
under the topic of their `View`, once for all subscribers. A `Region` has no messages of its own: its numbers
are in the header of every image. A `Still` is answered once.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple, get_args

ReducerName = Literal["mean", "max", "nearest"]
CodecName = Literal["lz4", "jpeg"]
RegionKind = Literal["box", "circle"]
Content = Literal["preview", "pixels"]

END = b"\n"
MAX_TOPIC_BYTES = 256


class Area(NamedTuple):
    """A rectangle of pixels; without pixels, it is the whole image."""

    x: int = 0
    y: int = 0
    width: int = 0
    height: int = 0

    def is_inside(self, shape: tuple[int, int]) -> bool:
        """Return whether it is a part of an image of this shape."""
        return 0 < self.width <= shape[1] - self.x and 0 < self.height <= shape[0] - self.y


WHOLE = Area()


class View(NamedTuple):
    """Images of an area, reduced and encoded."""

    reducer: ReducerName = "mean"
    codec: CodecName = "lz4"
    area: Area = WHOLE


class Region(NamedTuple):
    """Numbers of a box, or of the ellipse in it, in each image."""

    kind: RegionKind
    area: Area


class Still(NamedTuple):
    """An image that has been published, as a preview or the pixels of an area. `number` makes it unique."""

    number: int
    image: int
    content: Content
    area: Area = WHOLE


Request = View | Region | Still

_AREA = r" (\d{1,6}) (\d{1,6}) (\d{1,6}) (\d{1,6})"


def _one_of(names: object) -> str:
    return f"({'|'.join(get_args(names))})"


_VIEW = re.compile(f"view {_one_of(ReducerName)} {_one_of(CodecName)}{_AREA}\n")
_REGION = re.compile(f"region {_one_of(RegionKind)}{_AREA}\n")
_STILL = re.compile(rf"still (\d{{1,20}}) (\d{{1,20}}) {_one_of(Content)}{_AREA}\n")


def topic(request: Request) -> bytes:
    """Return the topic of a request. None is the start of another."""
    *words, area = request
    return " ".join([type(request).__name__.lower(), *map(str, words), *map(str, area)]).encode() + END


def region_key(region: Region) -> str:
    """Return the name of a region in headers."""
    return " ".join(map(str, (region.kind, *region.area)))


def request_of(topic: bytes) -> Request | None:
    """Return the request of a topic; None if it is not one."""
    try:
        text = topic[:MAX_TOPIC_BYTES].decode("ascii")
    except UnicodeDecodeError:
        return None
    if found := _VIEW.fullmatch(text):
        reducer, codec, *area = found.groups()
        return View(reducer, codec, _area(area))  # pyright: ignore[reportArgumentType]
    if found := _REGION.fullmatch(text):
        kind, *area = found.groups()
        return Region(kind, _area(area))  # pyright: ignore[reportArgumentType]
    if found := _STILL.fullmatch(text):
        number, image, content, *area = found.groups()
        return Still(int(number), int(image), content, _area(area))  # pyright: ignore[reportArgumentType]
    return None


def _area(words: list[str]) -> Area:
    return Area(*map(int, words))


def frame_of(message: memoryview) -> tuple[bytes, memoryview]:
    """Return topic and frame of a message. Raise `ValueError` if it has no topic."""
    end = bytes(message[:MAX_TOPIC_BYTES]).find(END) + 1
    if not end:
        raise ValueError("preview message: no topic")
    return bytes(message[:end]), message[end:]
