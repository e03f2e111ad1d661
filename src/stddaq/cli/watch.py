"""`stddaq watch`: a live stream in the terminal, with its rate, losses, and images."""

from __future__ import annotations

import argparse
import sys
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

from stddaq.cli.text import bytes_text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from stddaq.cli.image_preview import Contrast
    from stddaq.client import LiveImage, LiveStreamClient

SUMMARY = "show a live stream: rate, losses, images"

FIRST_IMAGE_TIMEOUT_S = 10.0
# What a terminal behind ssh can follow.
DRAW_PERIOD_S = 0.25
LINE_PERIOD_S = 1.0
RATE_SPAN_S = 3.0
QUIET_S = 2.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("address", help="of the live stream, tcp://HOST:PORT")
    parser.add_argument("-n", "--n-images", type=int, metavar="N", help="end after N images (Ctrl-C ends it)")
    parser.add_argument("--save", type=Path, metavar="DIRECTORY", help="write every image as a PNG file")
    parser.add_argument("--log", action="store_true", help="logarithmic scale of counts")
    parser.add_argument(
        "--timeout",
        type=float,
        default=FIRST_IMAGE_TIMEOUT_S,
        metavar="SECONDS",
        help=f"how long to wait for the first image (default {FIRST_IMAGE_TIMEOUT_S:g})",
    )


def run(args: argparse.Namespace) -> int:
    from stddaq.client import LiveStreamClient, LiveStreamTimeoutError
    from stddaq.errors import ConfigError

    if args.n_images is not None and args.n_images < 1:
        raise ConfigError(f"-n: found {args.n_images}, allowed is 1 or more")
    if not 0 < args.timeout < 1e6:
        raise ConfigError(f"--timeout: found {args.timeout:g}, allowed is a number of seconds above 0")
    saver = None if args.save is None else _Saver(args.save)
    seen = _Seen()
    try:
        with LiveStreamClient(args.address) as stream:
            watch = _watch_terminal if sys.stdout.isatty() else _watch_lines
            watch(stream, args, seen, saver)
    except LiveStreamTimeoutError as error:
        print(f"stddaq watch: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        pass  # The usual way to end it.
    if sys.stdout.isatty() and seen.last is not None:
        _leave(seen.last, args.log)
    print(seen.summary())
    if saver is not None and saver.n_written:
        print(f"saved       {saver.n_written} images in {args.save}")
    return 0


class _Seen:
    """What has been seen so far."""

    def __init__(self) -> None:
        self.n_images = self.n_damaged = self.n_skipped = self.n_dropped = self.n_malformed = 0
        self.last: LiveImage | None = None
        self.last_at = 0.0
        self._recent: deque[tuple[float, int]] = deque()

    def add(self, image: LiveImage, stream: LiveStreamClient) -> None:
        """Take the next image into account."""
        now = time.monotonic()
        self.n_images += 1
        self.n_damaged += image.status is not None
        self.last, self.last_at = image, now
        self._recent.append((now, image.n_bytes))
        self._forget(now)
        self.n_skipped, self.n_malformed = stream.n_skipped, stream.n_malformed
        self.n_dropped = stream.n_dropped

    def _forget(self, now: float) -> None:
        while self._recent and self._recent[0][0] < now - RATE_SPAN_S:
            self._recent.popleft()

    def rates(self) -> tuple[float, float]:
        """Images and bytes per second, of the last seconds."""
        now = time.monotonic()
        self._forget(now)
        if len(self._recent) < 2:
            return 0.0, 0.0
        span = now - self._recent[0][0]
        return len(self._recent) / span, sum(n_bytes for _, n_bytes in self._recent) / span

    def losses(self) -> str:
        """What did not come, or not well: `3 ids not seen, 1 damaged`; empty when nothing is missing."""
        parts = (
            (self.n_skipped, "ids not seen"),
            (self.n_dropped, "left out here, the terminal is slow"),
            (self.n_damaged, "damaged"),
            (self.n_malformed, "not understood"),
        )
        return ", ".join(f"{count} {what}" for count, what in parts if count)

    def summary(self) -> str:
        """One line for the end."""
        if self.last is None:
            return "no images"
        losses = self.losses()
        return f"{self.n_images} images, the last with id {self.last.image_id}" + (losses and f"; {losses}")


class _Saver:
    """Writes images as PNG files; never over another."""

    def __init__(self, directory: Path) -> None:
        """Make the directory. Raises `ConfigError`."""
        from stddaq.errors import ConfigError

        self._directory = directory
        self.n_written = 0
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--save {directory}: {error.strerror}") from error

    def save(self, image: LiveImage, contrast: Contrast) -> None:
        """Write one image. Raises `ConfigError` when that is not possible."""
        from stddaq.cli.image_preview import write_png
        from stddaq.errors import ConfigError

        path = self._directory / f"image-{image.image_id:08d}.png"
        again = 1
        while path.exists():  # The ids start again when the detector is re-armed.
            again += 1
            path = self._directory / f"image-{image.image_id:08d}-{again}.png"
        try:
            write_png(path, image.pixels, contrast)
        except OSError as error:
            raise ConfigError(f"--save: {path}: {error.strerror}") from error
        self.n_written += 1


def _watch_lines(
    stream: LiveStreamClient, args: argparse.Namespace, seen: _Seen, saver: _Saver | None
) -> None:
    """Into a file or pipe: one line a second."""
    shown_at = time.monotonic()
    while args.n_images is None or seen.n_images < args.n_images:
        _take_one(stream, args, seen, saver, patience=LINE_PERIOD_S)
        if time.monotonic() >= shown_at + LINE_PERIOD_S and seen.last is not None:
            shown_at = time.monotonic()
            print(", ".join(part for part in (*_facts(seen), seen.losses()) if part), flush=True)


def _watch_terminal(
    stream: LiveStreamClient, args: argparse.Namespace, seen: _Seen, saver: _Saver | None
) -> None:
    from rich.live import Live

    waiting = f"waiting for images at {args.address} ..."
    with Live(waiting, auto_refresh=False, screen=True, vertical_overflow="crop") as live:
        live.refresh()
        drawn_at = 0.0
        while args.n_images is None or seen.n_images < args.n_images:
            _take_one(stream, args, seen, saver, patience=DRAW_PERIOD_S)
            if seen.last is not None and time.monotonic() >= drawn_at + DRAW_PERIOD_S:
                live.update(_screen(args, seen, seen.last), refresh=True)
                drawn_at = time.monotonic()


def _leave(image: LiveImage, is_logarithmic: bool) -> None:
    """Print the last image, which the screen took with it."""
    from rich.console import Console

    from stddaq.cli.image_preview import Contrast, TerminalImage

    Console().print(TerminalImage(image.pixels, Contrast.of(image.pixels, is_logarithmic)))


def _take_one(
    stream: LiveStreamClient,
    args: argparse.Namespace,
    seen: _Seen,
    saver: _Saver | None,
    patience: float,
) -> None:
    """Wait a while for the next image; for the first one as long as asked, then it is an error."""
    from stddaq.client import LiveStreamTimeoutError

    is_first = seen.last is None
    try:
        image = stream.receive(args.timeout if is_first else patience)
    except LiveStreamTimeoutError:
        if is_first:
            raise
        return
    seen.add(image, stream)
    if saver is not None:
        from stddaq.cli.image_preview import Contrast

        saver.save(image, Contrast.of(image.pixels, args.log))


def _facts(seen: _Seen) -> list[str]:
    """Id, rates, and what the images are."""
    assert seen.last is not None
    image = seen.last
    images_per_s, bytes_per_s = seen.rates()
    height, width = image.pixels.shape
    facts = [f"id {image.image_id}", f"{images_per_s:.1f} Hz", f"{bytes_text(bytes_per_s)}/s"]
    facts.append(f"{width}x{height} {image.pixels.dtype.name} {image.protocol}")
    quiet = time.monotonic() - seen.last_at
    if quiet > QUIET_S:
        facts.append(f"nothing new for {quiet:.0f} s")
    return facts


def _screen(args: argparse.Namespace, seen: _Seen, image: LiveImage) -> RenderableType:
    """The image, and below it what there is to say."""
    from rich.layout import Layout
    from rich.text import Text

    from stddaq.cli.image_preview import Contrast, TerminalImage

    contrast = Contrast.of(image.pixels, args.log)
    facts = Text.assemble((f" {args.address}  ", "bold"), "  ".join(_facts(seen)))
    counts = Text(
        f" counts {image.pixels.min():g} to {image.pixels.max():g}, mean {image.pixels.mean():.4g}, "
        f"shown {contrast.darkest:.4g} to {contrast.brightest:.4g}"
        f"{' (log)' if contrast.is_logarithmic else ''}",
        "dim",
    )
    losses = seen.losses()
    status = Text(f" {losses or 'nothing missing'}", "yellow" if losses else "green")
    if image.status is not None:
        status.append(f"  this image: {image.status}", "bold red")
    layout = Layout()
    layout.split_column(
        Layout(TerminalImage(image.pixels, contrast), name="image"),
        *(
            Layout(line, size=1, name=name)
            for name, line in (("facts", facts), ("counts", counts), ("status", status))
        ),
    )
    return layout
