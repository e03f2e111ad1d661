"""`stddaq demo`: record simulated images and prove that every pixel is right.

A simulated detector, the driver, two writers and the metadata writer record a run; then every pixel is read
back from the master file and compared with the simulator's scene. With `--udp` the detector is a GigaFRoST
that sends packets, from which receivers, converters and the module synchroniser make images. With `--watch`
the services keep running for a browser until Ctrl-C. The demo uses free ports, names and an ipc directory of
its own, and leaves nothing but its files.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stddaq.cli.demo_check import Checked, check_pixels, draw
from stddaq.cli.demo_services import (
    PREFIX,
    Addresses,
    DemoError,
    config_path_in,
    deployment,
    free_addresses,
    running_command,
    wait_for_subscriptions,
    write_config,
)
from stddaq.closing import exit_at_signals
from stddaq.daemon.arguments import ArgumentParser, NumberRange, image_count
from stddaq.text import mismatch

if TYPE_CHECKING:
    from stddaq.config import DetectorConfig

SUMMARY = "record simulated images, check every pixel of the files, and show them"
N_SLOTS = 1000
# The demo takes the largest whose ring buffer fits: N_SLOTS images of two bytes per pixel.
IMAGE_SIZES = (512, 256, 128, 64)
# A GigaFRoST has other widths. The packets of all modules of an image must fit into the sockets' buffers.
UDP_IMAGE_SIZES = (240, 144, 96, 48)
UDP_MAX_VALUE = 4095
DEFAULT_RATE_HZ, UDP_DEFAULT_RATE_HZ = 200.0, 50.0
DEFAULT_IMAGES, UDP_DEFAULT_IMAGES = 1000, 250


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--directory", default="demo", help="directory of the files, made if missing (default: demo)"
    )
    parser.add_argument(
        "-n",
        "--n-images",
        type=image_count,
        help=f"images to record (default: {DEFAULT_IMAGES}, with --udp {UDP_DEFAULT_IMAGES})",
    )
    parser.add_argument(
        "--rate",
        type=NumberRange(0.1, 10_000, "Hz"),
        help=f"images per second (default: {DEFAULT_RATE_HZ:g}, with --udp {UDP_DEFAULT_RATE_HZ:g})",
    )
    parser.add_argument(
        "--size",
        type=int,
        choices=(*IMAGE_SIZES, *UDP_IMAGE_SIZES),
        help="height and width in pixels (default: the largest that fits)",
    )
    parser.add_argument(
        "--udp",
        action="store_true",
        help="the detector sends UDP packets, from which receivers and converters make the images",
    )
    parser.add_argument(
        "--watch",
        action="store_true",
        help="then keep the detector running, to look at its images in a browser, until Ctrl-C",
    )


def run(args: argparse.Namespace) -> int:
    exit_at_signals()  # Ends the services that were started, as Ctrl-C does.
    sizes = UDP_IMAGE_SIZES if args.udp else IMAGE_SIZES
    if args.size not in (None, *sizes):
        kind = "with --udp" if args.udp else "without --udp"
        raise DemoError(mismatch("--size", f"one of {', '.join(map(str, sizes))} {kind}", f"{args.size}"))
    if args.udp and importlib.util.find_spec("numba") is None:
        advice = "pip install 'stddaq[udp]'"
        raise DemoError(mismatch("package numba", "it, for --udp", "none", advice))
    n_images = args.n_images or (UDP_DEFAULT_IMAGES if args.udp else DEFAULT_IMAGES)
    rate = args.rate or (UDP_DEFAULT_RATE_HZ if args.udp else DEFAULT_RATE_HZ)
    directory = _prepare_directory(Path(args.directory))
    addresses = free_addresses()
    side = args.size or _image_side(directory, sizes)
    config_path, config = write_config(directory, side, args.udp, addresses if args.watch else None)
    print(f"stddaq demo: {n_images} images of {side}x{side} pixels, {rate:g} per second\n", flush=True)
    with contextlib.ExitStack() as running:
        up = running.enter_context(
            deployment(directory, config_path, addresses.driver, None if args.udp else rate)
        )
        if args.udp:
            wait_for_subscriptions(directory)
            packets = ["simulate-udp", str(config_path), "--rate", f"{rate:g}"]
            running.enter_context(running_command(packets, directory / f"{PREFIX}-detector.log"))
        account = _record(addresses.driver, directory, config, n_images)
        if not args.watch:
            running.close()
        _check_and_draw(directory, config, account, n_images, UDP_MAX_VALUE if args.udp else None)
        if args.watch:
            _watch(addresses, directory, up)
        else:
            _propose(account["files"]["master"])
    return 0


def _check_and_draw(
    directory: Path, config: DetectorConfig, account: dict[str, Any], n_images: int, max_value: int | None
) -> None:
    master = account["files"]["master"]
    if not master:
        raise DemoError("the run has no master file")
    begin = time.monotonic()
    print("\nchecking every pixel of every image ...", flush=True)
    checked = check_pixels(Path(master), config, account, n_images, max_value)
    seconds = time.monotonic() - begin
    png = directory / f"{PREFIX}.png"
    draw(png, checked, config, account)
    _summarise(checked, seconds, account, png)


def _prepare_directory(directory: Path) -> Path:
    """Make the directory. Refuse one whose files, which the demo would replace, are not its own."""
    directory = directory.absolute()
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DemoError(f"{directory}: cannot be made: {error.strerror}") from error
    if not config_path_in(directory).exists() and any(directory.glob(f"{PREFIX}*.h5")):
        raise DemoError(
            mismatch(
                str(directory), "a directory of the demo, or one without its file names", f"{PREFIX}*.h5"
            )
        )
    return directory


def _image_side(directory: Path, sizes: Sequence[int]) -> int:
    free = {place: shutil.disk_usage(place).free for place in (Path("/dev/shm"), directory)}
    for side in sizes:
        # A tenth more than the pixels, so that the demo does not fill the machine.
        if all(N_SLOTS * side * side * 2 * 1.1 < n_bytes for n_bytes in free.values()):
            return side
    found = ", ".join(f"{place} {n_bytes // 2**20} MiB" for place, n_bytes in free.items())
    raise DemoError(mismatch("free space", "10 MiB or more in each place", found))


def _record(url: str, directory: Path, config: DetectorConfig, n_images: int) -> dict[str, Any]:
    from stddaq.cli.record import follow
    from stddaq.cli.stop_signals import stop_signals
    from stddaq.client import DriverClient

    with DriverClient(url) as driver, stop_signals((signal.SIGINT,)) as asked:
        driver.start(directory, file_prefix=PREFIX, n_image=n_images, overwrite=True, first_image_timeout=30)
        follow(driver, config.image_bytes, asked)
        driver.wait_until_saved(timeout=30)
        account = driver.last_result()
    if account is None or not account["count"]:
        raise DemoError("no image was recorded")
    return account


def _summarise(checked: Checked, seconds: float, account: dict[str, Any], png: Path) -> None:
    from stddaq.cli.account import account_lines

    image_bytes = checked.shown[0][1].nbytes
    print()
    print("\n".join(account_lines(account, image_bytes)))
    print(f"checked     {checked.n_images} images, {checked.n_pixels} pixels, 0 differ ({seconds:.1f} s)")
    print(f"preview     {png}")


def _propose(master: str) -> None:
    command, directory = _own_command(), shlex.quote(str(Path(master).parent))
    print("\nTry next:")
    print(f"  {command} info {shlex.quote(master)}")
    print(f"  silx view {shlex.quote(master)}  # pip install 'silx[full]'; any NeXus viewer does")
    print(f"  {command} up {directory}/{PREFIX}.json -m --source simulate --rate 100")
    print(f"  {command} record {directory} --prefix mine -n 500  # in another terminal")


def _watch(addresses: Addresses, directory: Path, up: subprocess.Popen[bytes]) -> None:
    """Say where to look, and wait for Ctrl-C. Raise `DemoError` if the services end."""
    command, url = _own_command(), addresses.driver
    print("\nThe detector keeps running. Open in a browser:")
    print(f"  {addresses.page}")
    print("Try next, in another terminal, and watch the run on the page:")
    print(f"  {command} record {shlex.quote(str(directory))} --prefix mine -n 2000 --url {url}")
    print(f"  {command} watch {addresses.stream} --log")
    print("Press Ctrl-C to end.", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        up.wait()
        raise DemoError(f"the services have ended, see {directory / f'{PREFIX}.log'}")
    print("\nending the services ...", flush=True)


def _own_command() -> str:
    """Return how to call this command in a new terminal, where no virtual environment is active."""
    if shutil.which("stddaq") and "VIRTUAL_ENV" not in os.environ:
        return "stddaq"
    path = Path(sys.executable).with_name("stddaq")
    return shlex.quote(str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path))
