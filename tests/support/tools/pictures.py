"""Take the pictures of the page and of `stddaq watch` for the documentation: `make pictures`."""

from __future__ import annotations

import argparse
import base64
import io
import re
import signal
import sys
import tempfile
from pathlib import Path

from cli.conftest import Up
from rich.console import Console
from rich.terminal_theme import MONOKAI
from support.peers import chromium
from support.peers.chromium import Tab
from support.processes.deployment import Deployment, free_port, wait_until

from stddaq.cli import watch
from stddaq.client import LiveStreamClient

MAX_BYTES = 200_000
LAPTOP, WALL = (1280, 720), (3840, 2160)
# 2 GiB of shared memory.
CONFIG = {
    "image_pixel_height": 1024,
    "image_pixel_width": 1024,
    "number_of_writers": 2,
    "detector_name": "simulated",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, help="directory of the pictures")
    directory = parser.parse_args().directory
    with tempfile.TemporaryDirectory() as files:
        stream, port = f"tcp://127.0.0.1:{free_port()}", free_port()
        services = {
            "services": [f"stddaq-rest --port {port} --allow-control --root {files}"],
            "live_stream_configs": {stream: {"type": "forward", "config": []}},
        }
        # Forks would show the memory of all that they share.
        deployment = Deployment(Path(files), preloaded=False, **CONFIG, **services)
        try:
            up = Up(deployment, "--source", "simulate", "--rate", 10)
            take_page(f"http://127.0.0.1:{port}", up, Path(files), directory)
            take_watch(stream, directory)
        finally:
            deployment.close()
    return 0


def take_page(url: str, up: Up, files: Path, directory: Path) -> None:
    """Take the page on a laptop and on a wall screen, during a run."""
    up.record(files, "-n", 20, "--prefix", "first").succeed(60)
    run = up.record(files, "-n", 5000, "--prefix", "second")
    with chromium.opened(url, *LAPTOP) as tab:
        wait_for_images(tab, 50)
        save(tab, directory / "page.webp")
        # Lines over time begin with the page.
        wait_for_images(tab, 250)
        tab.click("#tab-services")
        tab.wait_for(lambda: tab.evaluate("!!document.querySelector('#health td')"), "services")
        tab.wait_for(lambda: "highest" in tab.text("#panel-services figure p"), "lines over time")
        save(tab, directory / "page-services.webp")
    with chromium.opened(f"{url}/?wall", *WALL) as tab:
        wait_for_images(tab, 300)
        save(tab, directory / "page-wall.webp")
    run.end(signal.SIGINT)


def wait_for_images(tab: Tab, n_images: int) -> None:
    """Wait until the page shows images, and that so many of the run are recorded."""
    # The browser would copy every image to this process as base64.
    tab.call("Network.disable")
    tab.wait_for(lambda: "images/s" in tab.text("#live"), "images")
    tab.choose("#scale", "log")

    def is_recorded() -> bool:
        found = re.search(r"(\d+) of 5000", tab.text("#run-facts"))
        return found is not None and int(found[1]) >= n_images

    tab.wait_for(is_recorded, f"{n_images} images of the run")


def save(tab: Tab, path: Path) -> None:
    """Save what the page shows."""
    for quality in (90, 75, 60, 45):
        taken = tab.call("Page.captureScreenshot", format="webp", quality=quality)
        content = base64.b64decode(taken["data"])
        if len(content) <= MAX_BYTES:
            path.write_bytes(content)
            print(f"{path}: {len(content) // 1000} kB", flush=True)
            return
    raise AssertionError(f"{path}: more than {MAX_BYTES} bytes")


def take_watch(address: str, directory: Path) -> None:
    """Take the terminal of `stddaq watch`, as a browser draws its characters."""
    args, seen = argparse.Namespace(address=address, log=True), watch._Seen()
    with LiveStreamClient(address) as stream:
        for _ in range(10):
            seen.add(stream.receive(20), stream)
    assert seen.last is not None
    console = Console(file=io.StringIO(), record=True, width=90, height=30, color_system="truecolor")
    console.print(watch._screen(args, seen, seen.last))
    style = "<style>pre { line-height: 1.17; margin: 0 }</style>"
    page = directory / "watch.html"
    page.write_text(style + console.export_html(theme=MONOKAI, inline_styles=True))
    try:
        with chromium.opened(page.absolute().as_uri(), 780, 570) as tab:
            wait_until(lambda: "Hz" in tab.text("pre"), 30)
            save(tab, directory / "watch.webp")
    finally:
        page.unlink()


if __name__ == "__main__":
    sys.exit(main())
