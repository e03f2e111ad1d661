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
import json
import os
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stddaq.closing import exit_at_signals
from stddaq.daemon.arguments import ArgumentParser, NumberRange, image_count
from stddaq.errors import StdDaqError
from stddaq.text import mismatch

if TYPE_CHECKING:
    import h5py
    import numpy as np

    from stddaq.config import DetectorConfig

SUMMARY = "record simulated images, check every pixel of the files, and show them"
PREFIX = "demo"
N_WRITERS = 2
N_SLOTS = 1000
# The demo takes the largest whose ring buffer fits: N_SLOTS images of two bytes per pixel.
IMAGE_SIZES = (512, 256, 128, 64)
# A GigaFRoST has other widths. The packets of all modules of an image must fit into the sockets' buffers.
UDP_IMAGE_SIZES = (240, 144, 96, 48)
UDP_MAX_VALUE = 4095
# No packet is lost here, but on a busy machine the simulator may pause within an image.
UDP_OPTIONS = ("--idle-time", "5")
N_MODULES = 8
DEFAULT_RATE_HZ, UDP_DEFAULT_RATE_HZ = 200.0, 50.0
DEFAULT_IMAGES, UDP_DEFAULT_IMAGES = 1000, 250
READY_TIMEOUT_S = 60.0
END_TIMEOUT_S = 15.0
N_SHOWN = 7


class DemoError(StdDaqError):
    """The demonstration cannot run here, or one of its checks failed."""


@dataclass(frozen=True, slots=True)
class _Addresses:
    """Where the services of one demo are reached; `page` and `stream` only with `--watch`."""

    driver: str
    page: str
    stream: str


@dataclass(frozen=True, slots=True)
class _Checked:
    """What was read back and compared."""

    n_images: int
    n_pixels: int
    shown: list[tuple[str, np.ndarray]]


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
    addresses = _addresses()
    side = args.size or _image_side(directory, sizes)
    config_path, config = _write_config(directory, side, args.udp, addresses if args.watch else None)
    print(f"stddaq demo: {n_images} images of {side}x{side} pixels, {rate:g} per second\n", flush=True)
    with contextlib.ExitStack() as running:
        up = running.enter_context(
            _deployment(directory, config_path, addresses.driver, None if args.udp else rate)
        )
        if args.udp:
            _wait_for_subscriptions(directory)
            packets = ["simulate-udp", str(config_path), "--rate", f"{rate:g}"]
            running.enter_context(_running(packets, directory / f"{PREFIX}-detector.log"))
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
    checked = _check(Path(master), config, account, n_images, max_value)
    seconds = time.monotonic() - begin
    png = directory / f"{PREFIX}.png"
    _draw(png, checked, config, account)
    _summarise(checked, seconds, account, png)


def _prepare_directory(directory: Path) -> Path:
    """Make the directory. Refuse one whose files, which the demo would replace, are not its own."""
    directory = directory.absolute()
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DemoError(f"{directory}: cannot be made: {error.strerror}") from error
    if not _config_path(directory).exists() and any(directory.glob(f"{PREFIX}*.h5")):
        raise DemoError(
            mismatch(
                str(directory), "a directory of the demo, or one without its file names", f"{PREFIX}*.h5"
            )
        )
    return directory


def _config_path(directory: Path) -> Path:
    return directory / f"{PREFIX}.json"


def _addresses() -> _Addresses:
    with contextlib.ExitStack() as probes:
        # All at once, so that they differ.
        sockets = [probes.enter_context(socket.socket()) for _ in range(3)]
        for probe in sockets:
            probe.bind(("127.0.0.1", 0))
        driver, page, stream = (f"127.0.0.1:{probe.getsockname()[1]}" for probe in sockets)
    return _Addresses(f"ws://{driver}", f"http://{page}/", f"tcp://{stream}")


def _write_config(
    directory: Path, side: int, udp: bool, watched: _Addresses | None
) -> tuple[Path, DetectorConfig]:
    """Write the configuration; `watched`: with a page and a live stream at these addresses."""
    from stddaq.config import DetectorConfig

    content = {
        "detector_name": f"demo-{uuid.uuid4().hex[:8]}",
        "detector_type": "gigafrost",
        "n_modules": N_MODULES if udp else 1,
        "bit_depth": 16,
        "image_pixel_height": side,
        "image_pixel_width": side,
        "start_udp_port": _free_udp_ports() if udp else 2000,
        "module_positions": {},
        "number_of_writers": N_WRITERS,
        "stats_collection_period": 1 if udp else 10,
        # Of the demo, and of runs that its user starts to try it.
        "allowed_roots": [str(directory.resolve()), tempfile.gettempdir()],
    }
    if watched is not None:
        content["services"] = [f"stddaq-rest --port {_port_of(watched.page)}"]
        content["live_stream_configs"] = {watched.stream: {"type": "periodic", "config": [1, 10]}}
    path = _config_path(directory)
    try:
        path.write_text(json.dumps(content, indent=2) + "\n")
    except OSError as error:
        raise DemoError(f"{path}: cannot be written: {error.strerror}") from error
    return path, DetectorConfig.load(path)


def _port_of(address: str) -> int:
    return int(address.rstrip("/").rpartition(":")[2])


def _free_udp_ports() -> int:
    """Return the first of `N_MODULES` consecutive UDP ports that are free now."""
    for first in random.sample(range(20000, 60000, N_MODULES), 100):
        with contextlib.ExitStack() as probes, contextlib.suppress(OSError):
            for port in range(first, first + N_MODULES):
                probe = probes.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                probe.bind(("0.0.0.0", port))
            return first
    raise DemoError(mismatch("UDP ports", f"{N_MODULES} consecutive ones that are free", "none"))


def _image_side(directory: Path, sizes: Sequence[int]) -> int:
    free = {place: shutil.disk_usage(place).free for place in (Path("/dev/shm"), directory)}
    for side in sizes:
        # A tenth more than the pixels, so that the demo does not fill the machine.
        if all(N_SLOTS * side * side * 2 * 1.1 < n_bytes for n_bytes in free.values()):
            return side
    found = ", ".join(f"{place} {n_bytes // 2**20} MiB" for place, n_bytes in free.items())
    raise DemoError(mismatch("free space", "10 MiB or more in each place", found))


@contextlib.contextmanager
def _deployment(
    directory: Path, config_path: Path, driver: str, rate: float | None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `stddaq up` with a driver at the url `driver`, and its output in demo.log.

    The simulator publishes images at `rate`; None: the detector sends packets.
    """
    up = ["up", str(config_path), "--port", str(_port_of(driver)), "-m"]
    up += (
        ["--source", "udp", *UDP_OPTIONS] if rate is None else ["--source", "simulate", "--rate", f"{rate:g}"]
    )
    log_path = directory / f"{PREFIX}.log"
    with _running(up, log_path) as process:
        _wait_until_ready(process, log_path)
        yield process


@contextlib.contextmanager
def _running(arguments: Sequence[str], log_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command of stddaq with an ipc directory of its own, and its output in a file."""
    from stddaq.daemon.parent_death import end_with_parent
    from stddaq.wire.default_addresses import IPC_DIRECTORY_VARIABLE, ipc_directory

    # Not in the demo's directory, because socket paths are limited to 107 bytes.
    ipc_parent = ipc_directory()
    with tempfile.TemporaryDirectory(prefix="stddaq-", dir=ipc_parent) as ipc, log_path.open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "stddaq", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, IPC_DIRECTORY_VARIABLE: ipc},
            # Ctrl-C first stops the recording; the services end after it.
            start_new_session=True,
            preexec_fn=end_with_parent(),  # noqa: PLW1509 - there is no other thread yet
        )
        try:
            yield process
        finally:
            _end(process)


def _wait_for_subscriptions(directory: Path) -> None:
    """Wait until each receiver has its converter: frames before that would be lost."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    log_path = directory / f"{PREFIX}.log"
    subscribed = re.compile(r"module_id=(\d+),.*n_subscribers=[1-9]")
    while len(set(subscribed.findall(log_path.read_text(errors="replace")))) < N_MODULES:
        if time.monotonic() > deadline:
            raise DemoError(f"the converters have not subscribed to the receivers, see {log_path}")
        time.sleep(0.05)


def _wait_until_ready(process: subprocess.Popen[bytes], log_path: Path) -> None:
    print("starting simulator, driver, writers ...", flush=True)
    deadline = time.monotonic() + READY_TIMEOUT_S
    while "all services ready" not in log_path.read_text(errors="replace"):
        if process.poll() is not None or time.monotonic() > deadline:
            lines = log_path.read_text(errors="replace").strip().splitlines()
            raise DemoError(
                f"the services did not start, see {log_path}; last line: {lines[-1] if lines else ''}"
            )
        time.sleep(0.05)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _record(url: str, directory: Path, config: DetectorConfig, n_images: int) -> dict[str, Any]:
    from stddaq.cli.record import follow, stop_signals
    from stddaq.client import DriverClient

    with DriverClient(url) as driver, stop_signals((signal.SIGINT,)) as asked:
        driver.start(directory, file_prefix=PREFIX, n_image=n_images, overwrite=True, first_image_timeout=30)
        follow(driver, config.image_bytes, asked)
        driver.wait_until_saved(timeout=30)
        account = driver.last_result()
    if account is None or not account["count"]:
        raise DemoError("no image was recorded")
    return account


def _check(
    master: Path, config: DetectorConfig, account: dict[str, Any], asked: int, max_value: int | None
) -> _Checked:
    """Compare every pixel of the master file with the simulator's scene. Raise `DemoError`.

    `max_value`: of the detector, if it is less than that of the pixel type.
    """
    import h5py
    import numpy as np

    from stddaq.sources.simulated.scenes import Scene

    scene = Scene.of(config, "rings")
    with h5py.File(master) as file:
        images = _dataset(file, "/entry/data/data")
        rows = _dataset(file, "/entry/data/metadata")[()]
        detector_ids = _dataset(file, "/entry/instrument/detector/metadata")[()]["image_id"]
        _expect("images in the master file", len(images), account["count"])
        _expect("rows of the metadata file", len(detector_ids), account["count"])
        if account["count"] < asked:
            print(f"stopped early: {account['count']} of {asked} images")
        _expect("images that are good", int((rows["status"] == 1).sum()), account["count"])
        ids = rows["image_id"].astype(int)
        _expect("skipped image ids", int((np.diff(ids) != 1).sum()), 0)
        if not np.array_equal(detector_ids, ids):
            raise DemoError("check failed: the rows of the metadata file are not those of the images")
        expected = np.empty(config.image_shape, config.dtype)
        for position, image_id in enumerate(ids):
            scene.write(int(image_id), expected)
            np.minimum(expected, max_value or np.iinfo(config.dtype).max, out=expected)
            if not np.array_equal(images[position], expected):
                raise DemoError(f"check failed: image {image_id} of {master} differs from what was simulated")
        places = np.linspace(0, len(ids) - 1, min(N_SHOWN, len(ids))).astype(int)
        shown = [(f"image {ids[place]}", images[place]) for place in places]
    return _Checked(len(ids), len(ids) * scene.shape[0] * scene.shape[1], shown)


def _dataset(file: h5py.File, name: str) -> h5py.Dataset:
    import h5py

    found = file.get(name)
    if not isinstance(found, h5py.Dataset):
        raise DemoError(f"check failed: {file.filename} has no dataset {name}")
    return found


def _expect(what: str, found: int, expected: int) -> None:
    if found != expected:
        raise DemoError(f"check failed: {mismatch(what, str(expected), str(found))}")


def _draw(path: Path, checked: _Checked, config: DetectorConfig, account: dict[str, Any]) -> None:
    from stddaq.cli.pictures.sheet import write_sheet

    side = config.image_shape[0]
    caption = (
        f"{checked.n_images} images of {side}x{side} {config.dtype.name}, "
        f"{account['number_of_writers']} writers, read back from {PREFIX}Master.h5, every pixel checked; "
        "logarithmic scale"
    )
    write_sheet(path, checked.shown, "stddaq demo: simulated powder diffraction", caption)


def _summarise(checked: _Checked, seconds: float, account: dict[str, Any], png: Path) -> None:
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


def _watch(addresses: _Addresses, directory: Path, up: subprocess.Popen[bytes]) -> None:
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
