"""The page of `stddaq-rest`: from an image to the screen, and what 20 browsers cost a recording beside them.

`glass` needs Debian's chromium. Each image has its number in it, as squares that are dark or bright, which is
read in the pictures that the browser's compositor has drawn. Taking and sending these pictures costs the
browser more than the page does, so the images that the page draws are counted without them. Of 20 browsers on
another machine only the connections are here: they receive, and acknowledge, as the page does.
"""

from __future__ import annotations

import base64
import io
import math
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from rig import Measured, Rig, cpu, detector, end, size_of, start, wait_ready
from tables import Table, spread

from stddaq.config import DetectorConfig
from stddaq.dataplane.image_publisher import ImagePublisher
from stddaq.dataplane.ring_buffer import RingBuffer

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support.peers import chromium

HZ = 10.0
GLASS_IMAGES = 150
# That of the preview service: the browser takes no time from the others, because it is on another machine.
NICENESS = 10
# Bits of the number of an image, each a square of this part of the image.
BITS, COLUMNS = 16, 4
# Notes which image the page has drawn, and when, as it says to the service.
NOTE_DRAWN = """(() => {
  window.drawn = [];
  const send = WebSocket.prototype.send;
  WebSocket.prototype.send = function (message) {
    const { ack } = JSON.parse(message);
    if (ack !== undefined) window.drawn.push([ack, Date.now() / 1000]);
    return send.call(this, message);
  };
})()"""
# Further browsers, without a page, whose cost in the HTTP service is measured with this number of images.
FURTHER_BROWSERS, FURTHER_IMAGES = 10, 50
N_BROWSERS, PAIRS = 20, 5
# Half of the highest rates of one writer, files in memory, of this page.
RECORDED = {"a": (160.0, 240), "c": (8000.0, 12_000)}
# Takes images as the page does: the next one goes when the last is acknowledged.
BROWSERS = """
import asyncio, json, os, struct, sys, time
from websockets.asyncio.client import connect
os.nice(19)
counts, until = [], None
async def browse(url, ready):
    async with connect(url, proxy=None, max_size=None, compression=None) as socket:
        n = 0
        counts.append(lambda: n)
        async for message in socket:
            if isinstance(message, bytes):
                n += 1
                length = struct.unpack_from("<I", message)[0]
                header = json.loads(message[4:4 + length])
                await socket.send(json.dumps({"ack": header["image"]}))
                ready.release()
async def main(url, n_browsers):
    ready = asyncio.Semaphore(0)
    tasks = [asyncio.create_task(browse(url, ready)) for _ in range(n_browsers)]
    for _ in range(n_browsers):
        await asyncio.wait_for(ready.acquire(), 60)
    print("ready", flush=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        print(sum(count() for count in counts), flush=True)
    for task in tasks:
        task.cancel()
asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


def glass() -> Table:
    """Measure the time from an image until a browser has drawn it."""
    table = Table(
        "glass",
        "From an image to the screen",
        f"{GLASS_IMAGES} images at {HZ:g} Hz, from the time that the source has stamped on one until the "
        "page of a headless Chromium has drawn it (software rendering, on the same cores with lower "
        "priority); and, of as many more, until it is seen in a picture that Chromium takes of its screen. "
        "This costs time, too, as the time until these are drawn shows. CPU in ms per image, and in the HTTP "
        f"service for each of {FURTHER_BROWSERS} more browsers, which draw nothing. "
        "Target: 95 % within 300 ms.",
        [
            "shape",
            "page",
            "drawn",
            "median ms",
            "95 % ms",
            "seen",
            "seen: median ms",
            "seen: 95 % ms",
            "meanwhile drawn: 95 % ms",
            "std_preview ms",
            "stddaq-rest ms",
            "each more browser ms",
        ],
    )
    for width, height in ((1366, 768), (3840, 2160)):
        with _page("a") as page:
            drawn, seen, drawn_meanwhile = _glass_times(page, width, height)
            used = page.cpu_per_image
            more = _cost_of_a_browser(page)
        row = (*_summary(drawn), *_summary(seen), _summary(drawn_meanwhile)[-1], *used, more)
        table.add(size_of("a"), f"{width}x{height}", *row)
    return table


def _summary(times: list[float]) -> tuple[int, float, float]:
    """Return number, median and 95 % of times; with less than two, there are no such."""
    if len(times) < 2:
        return len(times), math.nan, math.nan
    return len(times), statistics.median(times), statistics.quantiles(times, n=20)[-1]


class _Page:
    """The services of the page, and a source of numbered images."""

    def __init__(self, config: DetectorConfig, path: Path, stack: ExitStack) -> None:
        self.publisher = stack.enter_context(ImagePublisher(config))
        self._preview = start("std_preview", path, "--hz", 100)
        stack.callback(end, self._preview)
        wait_ready(self._preview)
        self._rest = start("stddaq-rest", path, "--port", 0)
        stack.callback(end, self._rest)
        self.url = wait_ready(self._rest)
        height, width = config.image_shape
        self._noise = np.random.default_rng(1).poisson(20, (height, width)).astype(np.uint16)
        self.square = min(height, width) // COLUMNS
        self.n_published = 0
        self.cpu_per_image = (0.0, 0.0)

    def publish(self, number: int) -> None:
        """Publish an image that shows its number."""
        pixels = self.publisher.begin(number)
        pixels[:] = self._noise
        for bit in range(BITS):
            row, column = divmod(bit, COLUMNS)
            if number >> bit & 1:
                top, left = row * self.square, column * self.square
                pixels[top : top + self.square, left : left + self.square] += 4000
        self.publisher.metadata.gf.frame_timestamp = time.time_ns()
        self.publisher.commit(number)
        self.n_published += 1

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Measure CPU ms per published image of preview and HTTP service."""
        before, n = [cpu([process]) for process in (self._preview, self._rest)], self.n_published
        yield
        after = [cpu([process]) for process in (self._preview, self._rest)]
        n = self.n_published - n
        self.cpu_per_image = ((after[0] - before[0]) / n * 1e3, (after[1] - before[1]) / n * 1e3)


@contextmanager
def _page(shape: str) -> Iterator[_Page]:
    with detector(shape) as path, ExitStack() as stack:
        yield _Page(DetectorConfig.load(path), path, stack)


def _glass_times(page: _Page, width: int, height: int) -> tuple[list[float], list[float], list[float]]:
    """Return the ms since it was taken for each image that was drawn without pictures of the page, for each
    that was seen in one, and for each that was drawn while they were taken.
    """
    with chromium.opened(page.url, width, height, niceness=NICENESS) as tab:
        tab.wait_for(lambda: tab.evaluate("!!document.querySelector('#tab-live')?.ariaSelected"), "the page")
        # The browser would copy every image to us as base64.
        tab.call("Network.disable")
        tab.evaluate(NOTE_DRAWN)
        number = 1
        while "images/s" not in tab.text("#live"):
            page.publish(number := number + 1)
            time.sleep(1 / HZ)
        # Numbers are dark or bright whatever the levels would be.
        tab.choose("#colours", "gray")
        tab.choose("#low", "0")
        tab.choose("#high", "4000")
        with page.measured():
            taken, _ = _published(page, tab, number + 1)
        drawn = _first(taken, tab.evaluate("window.drawn"))
        box = tab.evaluate(
            "(({x, y, width, height}) => [x, y, width, height])"
            "(document.getElementById('canvas').getBoundingClientRect())"
        )
        # Small pictures cost little, and show the squares.
        tab.call("Page.startScreencast", format="jpeg", quality=60, maxWidth=320, maxHeight=180)
        taken, pictures = _published(page, tab, max(taken) + 1)
        seen = _first(taken, [(_number_in(content, box, width), at) for at, content in pictures])
        drawn_meanwhile = _first(taken, tab.evaluate("window.drawn"))
    return drawn, seen, drawn_meanwhile


def _published(
    page: _Page, tab: chromium.Tab, first: int
) -> tuple[dict[int, float], list[tuple[float, str]]]:
    """Publish images. Return when each was taken, and the pictures of the page meanwhile."""
    taken, pictures, begin = dict[int, float](), list[tuple[float, str]](), time.monotonic()
    for number in range(first, first + GLASS_IMAGES):
        taken[number] = time.time()
        page.publish(number)
        pictures += tab.pictures_until(begin + (number - first + 1) / HZ)
    pictures += tab.pictures_until(time.monotonic() + 1)
    return taken, pictures


def _cost_of_a_browser(page: _Page) -> float:
    """Return the ms of CPU that the HTTP service takes for each further browser and image."""
    url, number, found = page.url.replace("http", "ws") + "/api/live/ws", 1, list[tuple[float, int]]()

    def publish(n_images: int) -> None:
        nonlocal number
        begin = time.monotonic()
        for position in range(n_images):
            page.publish(number := number + 1)
            time.sleep(max(0.0, begin + (position + 1) / HZ - time.monotonic()))

    for n_browsers in (1, 1 + FURTHER_BROWSERS):
        with _receiving(url, n_browsers, lambda: publish(2)) as browsers:
            before = _received(browsers)
            with page.measured():
                publish(FURTHER_IMAGES)
            found.append((page.cpu_per_image[1] * FURTHER_IMAGES, _received(browsers) - before))
    (one, n_one), (many, n_many) = found
    return (many - one) / (n_many - n_one)


def _first(taken: dict[int, float], found: list[tuple[int, float]]) -> list[float]:
    """Return the ms from the time that an image was taken until it was first found."""
    first: dict[int, float] = {}
    for number, at in found:
        if number in taken:
            first.setdefault(number, at)
    return [(at - taken[number]) * 1000 for number, at in first.items()]


def _number_in(content: str, box: list[float], page_width: int) -> int:
    """Return the number that a picture of the page shows."""
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("L"))
    scale = picture.shape[1] / page_width
    left, top, width, height = (side * scale for side in box)
    side = min(width, height)
    left, top = left + (width - side) / 2, top + (height - side) / 2
    number = 0
    for bit in range(BITS):
        row, column = divmod(bit, COLUMNS)
        y, x = (int(start + (place + 0.5) * side / COLUMNS) for start, place in ((top, row), (left, column)))
        number |= int(picture[y - 2 : y + 3, x - 2 : x + 3].mean() > 128) << bit
    return number


def viewers(pairs: int = PAIRS) -> Table:
    """Measure driver and writer at half of their highest rate, with and without browsers."""
    table = Table(
        "viewers",
        f"{N_BROWSERS} browsers beside a recording",
        f"Runs at half of the highest rate, files in memory, with {N_BROWSERS} browsers that show the "
        "images they can get, and without: CPU of driver and writer, and its ratio, median (min-max) of "
        "pairs of runs. "
        "Browsers have the lowest priority, because they run on other machines. "
        "Target: a ratio of 1.02, no image lost.",
        [
            "shape",
            "rate Hz",
            "without us/image",
            "with us/image",
            "ratio",
            "images/s per browser",
            "lost images",
        ],
    )
    for shape, (rate, n_images) in RECORDED.items():
        with Rig(shape, 1) as rig:
            _fill(rig, n_images)
            url = _http_service(rig)
            runs: list[tuple[Measured, Measured, float]] = []
            for position in range(pairs + 1):
                # The first of two runs is at a disadvantage, so they take turns.
                watched_first = position % 2 == 1
                before = None if watched_first else _unwatched(rig, n_images, rate)
                watched, hz = _watched(rig, url, n_images, rate)
                runs.append((before or _unwatched(rig, n_images, rate), watched, hz))
        without, with_them, hz = zip(*runs[1:], strict=True)
        ratios = [_cost(b) / _cost(a) for a, b in zip(without, with_them, strict=True)]
        lost = sum(n_images - run.account["n_good"] for run in (*without, *with_them))
        medians = [statistics.median(map(_cost, found)) * 1e6 for found in (without, with_them)]
        table.add(size_of(shape), rate, *medians, spread(ratios), statistics.median(hz), lost)
    return table


def _cost(run: Measured) -> float:
    return (run.driver + run.writers) / run.n_images


def _fill(rig: Rig, n_images: int) -> None:
    """Fill the slots with images that take as many bytes for browsers as those of a detector."""
    noise = np.random.default_rng(1).poisson(20, rig.config.image_shape).astype(rig.config.dtype)
    with RingBuffer(rig.config, rig.suffix) as ring:
        for slot in range(min(n_images, rig.config.n_slots)):
            ring.slot(slot)[:] = noise.tobytes()


def _http_service(rig: Rig) -> str:
    """Start preview and HTTP service. Return the address of the images for browsers."""
    wait_ready(rig.start("std_preview"))
    return wait_ready(rig.start("stddaq-rest", "--port", 0)).replace("http", "ws") + "/api/live/ws"


def _unwatched(rig: Rig, n_images: int, rate: float) -> Measured:
    rig.clear(n_images * rig.config.image_bytes)
    return rig.record(n_images, rate)


def _watched(rig: Rig, url: str, n_images: int, rate: float) -> tuple[Measured, float]:
    """Return a run with browsers, and the images per second that each of them got."""
    rig.clear(n_images * rig.config.image_bytes)
    with _receiving(url, N_BROWSERS, lambda: rig.announce(2, 2 * HZ)) as browsers:
        before = _received(browsers)
        run = rig.record(n_images, rate)
        return run, (_received(browsers) - before) / run.elapsed_s / N_BROWSERS


@contextmanager
def _receiving(url: str, n_browsers: int, publish: Callable[[], None]) -> Iterator[subprocess.Popen[str]]:
    """Start browsers, and call `publish` until each of them has received an image."""
    command = [sys.executable, "-c", BROWSERS, url, str(n_browsers)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            while not select.select([process.stdout], [], [], 0)[0]:
                publish()
            process.stdout.readline()
            yield process
        finally:
            process.kill()


def _received(process: subprocess.Popen[str]) -> int:
    assert process.stdin
    assert process.stdout
    process.stdin.write("\n")
    process.stdin.flush()
    return int(process.stdout.readline())
