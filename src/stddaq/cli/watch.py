"""`stddaq watch`: a live stream in the terminal, with its rate, losses, and images."""

from __future__ import annotations

import argparse
import sys
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

from stddaq.cli.escaped_output import terminal
from stddaq.daemon.arguments import ArgumentParser, Seconds, image_count
from stddaq.text import bytes_text, escaped

if TYPE_CHECKING:
    from rich.console import RenderableType

    from stddaq.cli.pictures.colours import Contrast
    from stddaq.client import LiveImage, LiveStreamClient

SUMMARY = "show a live stream: rate, losses, images"

FIRST_IMAGE_TIMEOUT_S = 10.0
# A terminal over ssh can follow this.
DRAW_PERIOD_S = 0.25
LINE_PERIOD_S = 1.0
RATE_SPAN_S = 3.0
QUIET_S = 2.0


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("address", help="address of the live stream, tcp://HOST:PORT")
    parser.add_argument(
        "-n", "--n-images", type=image_count, metavar="N", help="end after N images (default: at Ctrl-C)"
    )
    parser.add_argument("--save", type=Path, metavar="DIRECTORY", help="write every image as a PNG file")
    parser.add_argument("--log", action="store_true", help="logarithmic scale of counts")
    parser.add_argument(
        "--timeout",
        type=Seconds(),
        default=FIRST_IMAGE_TIMEOUT_S,
        metavar="SECONDS",
        help=f"longest wait for the first image (default: {FIRST_IMAGE_TIMEOUT_S:g})",
    )


def run(args: argparse.Namespace) -> int:
    from stddaq.client import LiveStreamClient, LiveStreamTimeoutError

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
        pass  # Ctrl-C is the usual end.
    if sys.stdout.isatty() and seen.last is not None:
        _show_last(seen.last, args.log)
    print(seen.summary())
    if saver is not None and saver.n_written:
        print(f"saved       {saver.n_written} images in {args.save}")
    return 0


class _Seen:
    """The images received so far: counts, rates, the last one."""

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
        """Return images and bytes per second, of the last seconds."""
        self._forget(time.monotonic())
        if len(self._recent) < 2:
            return 0.0, 0.0
        # n images have n - 1 intervals between them; the first image belongs to the interval before.
        (begin, n_first_bytes), (end, _) = self._recent[0], self._recent[-1]
        n_bytes = sum(n_bytes for _, n_bytes in self._recent) - n_first_bytes
        span = max(end - begin, 1e-6)
        return (len(self._recent) - 1) / span, n_bytes / span

    def losses(self) -> str:
        """Return the losses: `3 dropped because the terminal is slow, 1 damaged`; empty without any."""
        parts = (
            (self.n_dropped, "dropped because the terminal is slow"),
            (self.n_damaged, "damaged"),
            (self.n_malformed, "malformed"),
        )
        return ", ".join(f"{count} {what}" for count, what in parts if count)

    def left_out(self) -> str:
        """Return how many ids were not in the stream. The stream's setting may leave them out."""
        return f"{self.n_skipped} ids not in the stream" if self.n_skipped else ""

    def summary(self) -> str:
        """Return one line for the end."""
        if self.last is None:
            return "no images"
        images = f"{self.n_images} images, the last with id {self.last.image_id}"
        return "; ".join(part for part in (images, self.left_out(), self.losses()) if part)


class _Saver:
    """Writes images as PNG files. It replaces no file."""

    def __init__(self, directory: Path) -> None:
        """Make the directory. Raise `ConfigError`."""
        from stddaq.errors import ConfigError

        self._directory = directory
        self.n_written = 0
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--save {directory}: {error.strerror}") from error

    def save(self, image: LiveImage, contrast: Contrast) -> None:
        """Write one image. Raise `ConfigError`."""
        from stddaq.cli.pictures.colours import write_png
        from stddaq.errors import ConfigError

        path = self._directory / f"image-{image.image_id:08d}.png"
        again = 1
        while path.exists():  # Ids repeat after a restart of the detector.
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
    """Print one line a second, for files and pipes."""
    shown_at = time.monotonic()
    while args.n_images is None or seen.n_images < args.n_images:
        _take_one(stream, args, seen, saver, timeout=LINE_PERIOD_S)
        if time.monotonic() >= shown_at + LINE_PERIOD_S and seen.last is not None:
            shown_at = time.monotonic()
            print(
                ", ".join(part for part in (*_facts(seen), seen.left_out(), seen.losses()) if part),
                flush=True,
            )


def _watch_terminal(
    stream: LiveStreamClient, args: argparse.Namespace, seen: _Seen, saver: _Saver | None
) -> None:
    from rich.console import Console
    from rich.live import Live

    waiting = f"waiting for images at {args.address} ..."
    with Live(
        escaped(waiting),
        auto_refresh=False,
        screen=True,
        vertical_overflow="crop",
        console=Console(file=terminal()),
    ) as live:
        live.refresh()
        drawn_at = 0.0
        while args.n_images is None or seen.n_images < args.n_images:
            _take_one(stream, args, seen, saver, timeout=DRAW_PERIOD_S)
            if seen.last is not None and time.monotonic() >= drawn_at + DRAW_PERIOD_S:
                live.update(_screen(args, seen, seen.last), refresh=True)
                drawn_at = time.monotonic()


def _show_last(image: LiveImage, is_logarithmic: bool) -> None:
    """Print the last image again, because the full screen is restored at the end."""
    from rich.console import Console

    from stddaq.cli.pictures.colours import Contrast
    from stddaq.cli.pictures.terminal import TerminalImage

    Console(file=terminal()).print(TerminalImage(image.pixels, Contrast.of(image.pixels, is_logarithmic)))


def _take_one(
    stream: LiveStreamClient,
    args: argparse.Namespace,
    seen: _Seen,
    saver: _Saver | None,
    timeout: float,
) -> None:
    """Receive the next image, if one comes within `timeout`; the first must come within `args.timeout`."""
    from stddaq.client import LiveStreamTimeoutError

    is_first = seen.last is None
    try:
        image = stream.receive(args.timeout if is_first else timeout)
    except LiveStreamTimeoutError:
        if is_first:
            raise
        return
    seen.add(image, stream)
    if saver is not None:
        from stddaq.cli.pictures.colours import Contrast

        saver.save(image, Contrast.of(image.pixels, args.log))


def _facts(seen: _Seen) -> list[str]:
    """Return id, rates, and type of the images."""
    assert seen.last is not None
    image = seen.last
    images_per_s, bytes_per_s = seen.rates()
    height, width = image.pixels.shape
    facts = [f"id {image.image_id}", f"{images_per_s:.1f} Hz", f"{bytes_text(bytes_per_s)}/s"]
    facts.append(f"{width}x{height} {image.pixels.dtype.name} {image.protocol}")
    quiet = time.monotonic() - seen.last_at
    if quiet > QUIET_S:
        facts.append(f"no image for {quiet:.0f} s")
    return facts


def _screen(args: argparse.Namespace, seen: _Seen, image: LiveImage) -> RenderableType:
    """Return the image, and lines of facts below it."""
    from rich.layout import Layout
    from rich.text import Text

    from stddaq.cli.pictures.colours import Contrast
    from stddaq.cli.pictures.terminal import TerminalImage

    contrast = Contrast.of(image.pixels, args.log)
    facts = Text.assemble((f" {escaped(args.address)}  ", "bold"), escaped("  ".join(_facts(seen))))
    counts = Text(
        f" counts {image.pixels.min():g} to {image.pixels.max():g}, mean {image.pixels.mean():.4g}, "
        f"shown {contrast.darkest:.4g} to {contrast.brightest:.4g}"
        f"{' (log)' if contrast.is_logarithmic else ''}",
        "dim",
    )
    losses = seen.losses()
    status = Text(f" {losses or 'no losses'}", "yellow" if losses else "green")
    if seen.n_skipped:
        status.append(f"  {seen.left_out()}", "dim")
    if image.status is not None:
        status.append(f"  this image: {escaped(str(image.status))}", "bold red")
    layout = Layout()
    layout.split_column(
        Layout(TerminalImage(image.pixels, contrast), name="image"),
        *(
            Layout(line, size=1, name=name)
            for name, line in (("facts", facts), ("counts", counts), ("status", status))
        ),
    )
    return layout
