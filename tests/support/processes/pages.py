"""The page with images that a test publishes."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from support.peers import chromium
from support.peers.chromium import Tab
from support.processes.deployment import Deployment, wait_until
from support.processes.web import RestService

from stddaq.dataplane.image_publisher import ImagePublisher

# A page that was loaded again is not connected at once. It draws an image within the longest time.
_REPEAT_S = (0.5, 1.0, 2.0, 4.0, 6.0)


class ShownPage:
    """The page with images of `shape` that the test publishes."""

    def __init__(self, tab: Tab, publisher: ImagePublisher, shape: tuple[int, int]) -> None:
        self.tab, self._publisher, self._next = tab, publisher, 1
        self._height, self._width = shape

    def show(self, pixels: np.ndarray, *, once: bool = False, **options: int) -> int:
        """Publish an image, again if the page was not yet connected, until it is drawn. Return its id.

        With `once`, the page has drawn images of this view, and is given this one only once.
        """

        def is_drawn() -> bool:
            nonlocal image_id, repeat_at
            if time.monotonic() > repeat_at:
                image_id, self._next = self._next, self._next + 1
                self._publisher.publish(image_id, pixels, **options)
                repeat_at = math.inf if once else time.monotonic() + next(periods, _REPEAT_S[-1])
            return f"image {image_id}," in self.tab.text("#live")

        image_id, repeat_at, periods = 0, 0.0, iter(_REPEAT_S)
        self.tab.wait_for(is_drawn, "the image")
        # The layout of the page follows the first image.
        self.tab.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        return image_id

    def colour_at(self, x: float, y: float) -> list[int]:
        """Return red, green and blue of the canvas at a pixel of the image, while all of it fits."""
        return self.tab.evaluate(
            "(() => { const c = document.getElementById('canvas');"
            f" const z = Math.min(c.width / {self._width}, c.height / {self._height});"
            f" const x = (c.width - {self._width} * z) / 2 + {x} * z;"
            f" const y = (c.height - {self._height} * z) / 2 + {y} * z;"
            " return [...c.getContext('2d').getImageData(x, y, 1, 1).data].slice(0, 3); })()"
        )

    def place_of(self, x: float, y: float) -> tuple[float, float]:
        """Return the place on the page of a pixel of the image, while all of it fits."""
        left, top = self.tab.evaluate(
            "(() => { const c = document.getElementById('canvas'), b = c.getBoundingClientRect();"
            f" const z = Math.min(b.width / {self._width}, b.height / {self._height});"
            f" return [b.left + (b.width - {self._width} * z) / 2 + {x} * z,"
            f" b.top + (b.height - {self._height} * z) / 2 + {y} * z]; }})()"
        )
        return left, top

    def point_at(self, x: float, y: float) -> None:
        """Move the mouse to a pixel of the image, while all of it fits."""
        self.tab.move_to(*self.place_of(x, y))


@contextmanager
def page_of(
    deployment: Deployment, publisher: ImagePublisher, shape: tuple[int, int], files: Path, *options: object
) -> Iterator[ShownPage]:
    """Open the page, with the services that it needs. `options` are those of `stddaq-rest`."""
    rest = RestService.start(deployment, files, *options)
    preview = deployment.start("std_preview", "--hz", 100)
    with chromium.opened(rest.url) as tab:
        wait_until(publisher.count_subscribers, 30)
        yield ShownPage(tab, publisher, shape)
        # On a busy machine an image may be gone before the page asks for its exact values.
        complaints = [text for text in tab.complaints if "410 (Gone)" not in text]
        assert not complaints, complaints
        own = rest.url.partition("://")[2]
        assert [url for url in tab.urls if not re.match(rf"(http|ws)://{own}/|data:|blob:", url)] == []
    # Before the source: the last that detaches frees the memory, which takes a process of low priority long.
    assert preview.end() == 0
