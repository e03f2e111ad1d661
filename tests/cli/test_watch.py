"""`stddaq watch` as users run it, and its pictures."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from support.processes.deployment import Deployment, Service, free_port, wait_until
from support.processes.live_streams import LiveStreamService, start_live_stream, streamed_pixels

from stddaq.cli.pictures.colours import Contrast, write_png
from stddaq.cli.pictures.terminal import TerminalImage
from stddaq.cli.watch import _Seen
from stddaq.client import LiveImage, LiveStreamClient
from stddaq.config import DetectorConfig
from stddaq.dataplane.image_publisher import ImagePublisher


@contextmanager
def stream_of(
    deployment: Deployment, *args: object
) -> Iterator[tuple[LiveStreamService, Callable[[range], None]]]:
    """Yield a live stream and a function that publishes images with given ids."""
    with ImagePublisher(DetectorConfig.parse(deployment.config)) as source:
        stream = start_live_stream(deployment, *args)
        assert source.wait_for_subscribers(1, 20)

        def publish(ids: range) -> None:
            for image_id in ids:
                source.publish(image_id, streamed_pixels(deployment, image_id))

        yield stream, publish


def watch(deployment: Deployment, stream: LiveStreamService, *args: object) -> Service:
    """Start `stddaq watch` with a pipe as output. Return it when it has subscribed."""
    watching = deployment.run(deployment.stddaq, "watch", stream.address, *args)
    stream.process.wait_for_line(" subscribed")
    return watching


@pytest.mark.parametrize("stream_type", ["array-1.0", "bsread"])
def test_images_of_either_protocol_are_counted_and_saved(
    deployment: Deployment, tmp_path: Path, stream_type: str
) -> None:
    with stream_of(deployment, "-t", stream_type) as (stream, publish):
        watching = watch(deployment, stream, "-n", 3, "--save", tmp_path / "new" / "images")
        publish(range(5, 8))
        assert watching.wait() == 0
    assert "3 images, the last with id 7" in watching.stdout
    saved = sorted((tmp_path / "new" / "images").iterdir())
    assert [path.name for path in saved] == [f"image-{image_id:08d}.png" for image_id in (5, 6, 7)]
    for path in saved:
        with Image.open(path) as picture:
            assert picture.size == (48, 32)
            assert picture.format == "PNG"


def test_an_existing_image_file_is_not_overwritten(deployment: Deployment, tmp_path: Path) -> None:
    with stream_of(deployment) as (stream, publish):
        watching = watch(deployment, stream, "-n", 3, "--save", tmp_path)
        for n_saved in range(1, 4):
            publish(range(1, 2))
            wait_until(lambda n=n_saved: len(list(tmp_path.glob("*.png"))) == n)
        assert watching.wait() == 0
    names = sorted(path.name for path in tmp_path.glob("*.png"))
    assert names == ["image-00000001-2.png", "image-00000001-3.png", "image-00000001.png"]


def test_ids_that_did_not_arrive_are_counted(deployment: Deployment) -> None:
    with stream_of(deployment) as (stream, publish):
        watching = watch(deployment, stream, "-n", 2)
        publish(range(1, 12, 10))
        assert watching.wait() == 0
    assert watching.stdout[-1] == "2 images, the last with id 11; 9 ids not in the stream"


def test_interrupt_ends_it_with_exit_code_0(deployment: Deployment) -> None:
    with stream_of(deployment) as (stream, publish):
        watching = watch(deployment, stream)
        publish(range(1, 3))
        wait_until(lambda: stream.statistics().get("n_sent_images") == 2)
        # One line per second while images arrive.
        wait_until(lambda: publish(range(3, 4)) or watching.stdout, what="a line")
        assert watching.end(signal.SIGINT) == 0
    assert re.match(r"id \d+, [\d.]+ Hz, .*48x32 uint16 array-1\.0", watching.stdout[0])
    assert watching.stderr == []


@pytest.mark.slow
def test_an_address_without_a_stream_ends_it_with_the_reason(deployment: Deployment) -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    unserved = deployment.run(deployment.stddaq, "watch", address, "--timeout", 0.2)
    with stream_of(deployment) as (stream, _):
        silent = deployment.run(deployment.stddaq, "watch", stream.address, "--timeout", 4)
        assert (unserved.wait(), silent.wait()) == (1, 1)
    (line,) = unserved.stderr
    assert address in line
    assert "got no connection" in line
    (line,) = silent.stderr
    assert "got none over the connection" in line


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["nonsense"], "expected tcp://HOST:PORT, got 'nonsense'"),
        (["tcp://127.0.0.1:1", "-n", "0"], "expected an integer from 1"),
        (["tcp://127.0.0.1:1", "--timeout", "0"], "seconds above 0"),
        (["tcp://127.0.0.1:1", "--save", "/dev/null/x"], "--save /dev/null/x"),
    ],
)
def test_invalid_arguments_are_refused(deployment: Deployment, arguments: list[str], reason: str) -> None:
    refused = deployment.run(deployment.stddaq, "watch", *arguments)
    assert refused.wait() == 2
    (line,) = refused.stderr
    assert reason in line


def test_terminal_shows_image_and_facts_and_is_restored(deployment: Deployment) -> None:
    with stream_of(deployment) as (stream, publish):
        shown = b""
        pid, terminal = pty.fork()
        if pid == 0:
            os.environ.update(deployment.env, TERM="xterm-256color", COLUMNS="80", LINES="24")
            os.execv(deployment.stddaq, [deployment.stddaq, "watch", stream.address, "-n", "3"])
        try:
            stream.process.wait_for_line(" subscribed")
            publish(range(1, 3))
            deadline = time.monotonic() + 90
            # It may have received both before it shows anything.
            while not re.search(rb"id [12]\b", shown) and time.monotonic() < deadline:
                shown += read(terminal)
            publish(range(3, 4))
            while (more := read(terminal)) and time.monotonic() < deadline:
                shown += more
        finally:
            os.close(terminal)
            _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    text = shown.decode()
    assert "▀" in text
    assert stream.address in text
    assert "no losses" in text
    assert "3 images, the last with id 3" in text
    # It switches to the alternate screen and back.
    assert text.index("\x1b[?1049h") < text.index("\x1b[?1049l") < text.rindex("3 images")


def read(terminal: int) -> bytes:
    """Return the output on the terminal; empty when its program has exited."""
    if not select.select([terminal], [], [], 60)[0]:
        return b""
    try:
        return os.read(terminal, 65536)
    except OSError:
        return b""


def drawn(image: np.ndarray, width: int = 40, height: int = 20) -> list[str]:
    """Return the coloured lines of an image in a terminal of the given size."""
    console = Console(
        width=width, height=height, file=io.StringIO(), force_terminal=True, color_system="truecolor"
    )
    options = console.options.update(width=width, height=height)
    lines = console.render_lines(TerminalImage(image, Contrast.of(image)), options, pad=False)
    return ["".join(segment.text for segment in line) for line in lines]


@pytest.mark.parametrize(
    ("shape", "lines", "columns"),
    [((20, 20), 20, 40), ((2016, 2016), 20, 40), ((10, 1000), 1, 40), ((1000, 10), 20, 1), ((1, 1), 20, 40)],
)
def test_image_keeps_its_proportions_and_fits(shape: tuple[int, int], lines: int, columns: int) -> None:
    found = drawn(np.arange(shape[0] * shape[1], dtype=np.uint32).reshape(shape))
    assert len([line for line in found if line.strip()]) == lines
    assert {len(line.strip()) for line in found if line.strip()} == {columns}


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "f4"])
def test_image_without_contrast_and_with_odd_values_can_be_drawn(dtype: str, tmp_path: Path) -> None:
    for fill in (0, 200):
        image = np.full((8, 8), fill, dtype)
        assert drawn(image)
        write_png(tmp_path / "x.png", image, Contrast.of(image))
    if dtype == "f4":
        odd = np.array([[np.nan, np.inf], [-np.inf, 3.0]], "f4")
        assert drawn(odd)
        assert drawn(np.full((4, 4), np.nan, "f4"))


def test_single_hot_pixels_do_not_set_the_contrast() -> None:
    image = np.random.default_rng(0).poisson(100, (500, 500)).astype("u2")
    image[3, 3] = 65535
    contrast = Contrast.of(image)
    assert 50 < contrast.darkest < 100 < contrast.brightest < 150


def test_png_is_dark_where_the_image_is_and_bright_where_it_is(tmp_path: Path) -> None:
    image = np.zeros((20, 30), "u2")
    image[:, 15:] = 1000
    for is_logarithmic in (False, True):
        write_png(tmp_path / "x.png", image, Contrast(0.0, 1000.0, is_logarithmic))
        with Image.open(tmp_path / "x.png") as picture:
            pixels = np.asarray(picture.convert("L"))
        assert pixels.shape == (20, 30)
        assert pixels[:, :15].max() < 20 < 200 < pixels[:, 15:].min()


def test_a_rate_counts_intervals_not_images(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, now = _Seen(), 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    stream = SimpleNamespace(n_skipped=9, n_malformed=0, n_dropped=0)
    image = LiveImage(1, np.zeros((2, 2), "u2"), "array-1.0", None, None, None, 1000)
    for _ in range(3):
        seen.add(image, cast(LiveStreamClient, stream))
        now += 1.0
    assert seen.rates() == (1.0, 1000.0)
    assert (seen.losses(), seen.left_out()) == ("", "9 ids not in the stream")
