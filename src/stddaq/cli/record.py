"""`stddaq record`: one run, with a progress bar and a summary."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from stddaq.cli.escaped_output import terminal
from stddaq.cli.run_end import TIMEOUT_S, RunNotEndedError, stop_run
from stddaq.cli.stop_signals import StopAsked, stop_signals
from stddaq.cli.text import bad_text, behind_text, status_line
from stddaq.daemon.arguments import ArgumentParser, IntegerRange, Seconds, user_id
from stddaq.errors import StdDaqError
from stddaq.text import bytes_text, command_line, escaped

if TYPE_CHECKING:
    from stddaq.client import DriverClient, DriverStatus

SUMMARY = "record images into files, with a progress bar and a summary"
# Between two lines of progress when the output is not a terminal.
LINE_PERIOD_S = 1.0


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("path", help="existing directory for the files, as the driver sees it")
    parser.add_argument(
        "-n",
        "--n-images",
        type=IntegerRange(0, 2**63 - 1),
        metavar="N",
        help="images to record (default: until Ctrl-C)",
    )
    parser.add_argument("--prefix", default="file", help="prefix of the file names (default: file)")
    parser.add_argument(
        "--auto",
        action="store_true",
        help="number the runs: PREFIX_0001_, PREFIX_0002_, ... by what is there",
    )
    parser.add_argument(
        "--start-id",
        type=IntegerRange(0, 2**64 - 1),
        metavar="ID",
        help="do not record images with a lower id",
    )
    parser.add_argument(
        "--writer-id",
        type=user_id,
        metavar="USER",
        help="owner of the files, a name or uid (default: as the writers run)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    parser.add_argument(
        "--strict",
        action="store_true",
        help="end with an error when an image is overwritten in the ring buffer",
    )
    parser.add_argument(
        "--end-on-restart", action="store_true", help="end with an error when the image ids restart"
    )
    parser.add_argument("--config", help="configuration file, for the rate in GB/s")
    parser.add_argument(
        "--stop-timeout",
        type=Seconds(),
        default=TIMEOUT_S,
        metavar="SECONDS",
        help=f"longest wait for the files after Ctrl-C (default: {TIMEOUT_S:g})",
    )
    parser.add_driver_url()
    parser.add_argument(
        "--with",
        dest="others",
        action="append",
        default=[],
        metavar="URL",
        help="another driver, which records its part of the same images; may be given several times",
    )


def run(args: argparse.Namespace) -> int:
    from stddaq.cli.joined import existing_master, joined_driver, with_master
    from stddaq.client import CommandRefusedError, DriverClient, RunFailedError

    image_bytes = _image_bytes(args.config)
    if args.auto:
        from stddaq.files.names import next_numbered_prefix

        args.prefix = next_numbered_prefix(Path(args.path), args.prefix)
    with joined_driver(args) if args.others else DriverClient(args.url) as driver:
        if not args.overwrite and (reason := _overwriting(driver, args) or existing_master(args)):
            print(f"stddaq record: refused: {reason}", file=sys.stderr)
            return 1
        try:
            _record(driver, args, image_bytes)
        except CommandRefusedError as error:
            # The driver names the fields of its command.
            options = " (--prefix, --auto, --overwrite)" if error.error_type == "file_exists" else ""
            print(f"stddaq record: refused: {error.reason}{options}", file=sys.stderr)
            return 1
        except RunFailedError as error:
            print(f"stddaq record: run failed: {error.reason}", file=sys.stderr)
            if error.result is not None:
                _print_summary(with_master(error.result, args), image_bytes)
            return 1
        except RunNotEndedError as error:
            print(f"stddaq record: error: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            command = command_line("stddaq", "status", "--url", driver.url)
            print(
                f"stddaq record: not waiting; the driver stops the run, {command} shows its end",
                file=sys.stderr,
            )
            return 130
        return _summarise(driver, args, image_bytes)


def _record(driver: DriverClient, args: argparse.Namespace, image_bytes: int | None) -> None:
    """Start a run and follow it to its end."""
    with stop_signals((signal.SIGINT, signal.SIGTERM, signal.SIGHUP)) as asked:
        driver.start(args.path, **_fields(args))
        try:
            follow(driver, image_bytes, asked, args.stop_timeout)
        except BaseException:
            # A run without a number of images would otherwise never end.
            with contextlib.suppress(StdDaqError):
                driver.stop()
            raise
    driver.wait_until_saved(timeout=1.0)


def _overwriting(driver: DriverClient, args: argparse.Namespace) -> str:
    """Return why this run must not start on a driver that replaces existing files; empty if it may."""
    from stddaq.files.names import files_of_prefix
    from stddaq.text import mismatch

    if driver.latest.is_stddaq:
        return ""  # It refuses.
    advice = "this driver replaces existing files; choose another path or --prefix, or give --overwrite"
    try:
        existing = files_of_prefix(Path(args.path), args.prefix)
    except OSError as error:
        return mismatch(args.path, "a directory that can be listed from here", f"{error.strerror}", advice)
    if not existing:
        return ""
    found = ", ".join(existing[:3]) + (", ..." if len(existing) > 3 else "")
    return mismatch(args.path, "no file of this run", found, advice)


def _fields(args: argparse.Namespace) -> dict[str, Any]:
    """Return only the fields that the user gave, because another driver may refuse the rest."""
    fields = {
        "file_prefix": args.prefix,
        "n_image": args.n_images,
        "start_id": args.start_id,
        "writer_id": args.writer_id,
        "overwrite": args.overwrite or None,
        "strict": args.strict or None,
        "end_on_restart": args.end_on_restart or None,
    }
    return {name: value for name, value in fields.items() if value is not None}


def follow(
    driver: DriverClient, image_bytes: int | None, asked: StopAsked, stop_timeout: float = TIMEOUT_S
) -> None:
    """Show the progress of the run that `driver` started, and stop it when `asked`.

    Raise `RunNotEndedError` when it has not ended `stop_timeout` seconds later, `ConnectionLostError`, and
    `KeyboardInterrupt` at the second Ctrl-C.
    """
    with _progress(image_bytes) as progress:
        for status in driver.watch_run():
            progress.show(status)
            if asked:
                break
        else:
            return
        progress.say("stopping; press Ctrl-C again to exit without waiting for the files")
        for status in stop_run(driver, stop_timeout):
            progress.show(status)


class _Progress(Protocol):
    def show(self, status: DriverStatus) -> None: ...
    def say(self, message: str) -> None: ...


@contextlib.contextmanager
def _progress(image_bytes: int | None) -> Iterator[_Progress]:
    if not sys.stdout.isatty():
        yield _Lines(image_bytes)
        return
    with _Bar(image_bytes) as bar:
        yield bar


class _Rate:
    """Images per second since the first status with images; frozen at the end of the recording."""

    def __init__(self, image_bytes: int | None) -> None:
        self._image_bytes = image_bytes
        self._begin: tuple[float, int] | None = None
        self._text = ""

    def text(self, status: DriverStatus) -> str:
        """Return `200.1 images/s, 0.105 GB/s`; empty before the second status."""
        now, count = time.monotonic(), status.count or 0
        if status.status != "recording" or not count:
            return self._text
        if self._begin is None:
            self._begin = now, count
            self._image_bytes = self._image_bytes or _image_bytes_of(status.files)
        elif now > self._begin[0]:
            rate = (count - self._begin[1]) / (now - self._begin[0])
            self._text = f"{rate:.1f} images/s"
            if self._image_bytes:
                self._text += f", {rate * self._image_bytes / 1e9:.3f} GB/s"
        return self._text


class _Lines:
    """Progress for files and pipes: a line for each change of state, and one a second for others."""

    def __init__(self, image_bytes: int | None) -> None:
        self._rate = _Rate(image_bytes)
        self._last: tuple[str, float] = ("", 0.0)
        self._line = ""

    def show(self, status: DriverStatus) -> None:
        rate = self._rate.text(status)
        now = time.monotonic()
        if status.status == self._last[0] and now - self._last[1] < LINE_PERIOD_S:
            return
        line = status_line(status) + (f", {rate}" if rate and status.status == "recording" else "")
        if line != self._line:
            self._last, self._line = (status.status, now), line
            self.say(line)

    def say(self, message: str) -> None:
        print(message, flush=True)


class _Bar:
    """Progress bar for terminals."""

    def __init__(self, image_bytes: int | None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._rate = _Rate(image_bytes)
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("images  {task.fields[rate]}  {task.fields[bad]}"),
            TimeElapsedColumn(),
            console=Console(file=terminal(), highlight=False),
        )
        self._state = ""
        self._task = self._bar.add_task("starting", total=None, rate="", bad="")

    def show(self, status: DriverStatus) -> None:
        from rich.markup import escape

        from stddaq.wire.run_defaults import DEFAULT_N_IMAGE

        troubles = ", ".join(filter(None, (bad_text(status), behind_text(status))))
        endless = status.n_image is None or status.n_image >= DEFAULT_N_IMAGE
        self._bar.update(
            self._task,
            description=escape(escaped(status.status.replace("_", " "))),
            total=None if endless else status.n_image,
            completed=status.count or 0,
            rate=self._rate.text(status),
            bad=f"[red]{troubles}" if troubles else "",
        )
        if status.status != self._state:  # Short states are shown, too.
            self._state = status.status
            self._bar.refresh()

    def say(self, message: str) -> None:
        self._bar.console.print(message)

    def __enter__(self) -> _Bar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


def _summarise(driver: DriverClient, args: argparse.Namespace, image_bytes: int | None) -> int:
    """Print the account. Return the exit code."""
    from stddaq.cli.joined import with_master
    from stddaq.client import UnsupportedError

    try:
        account = driver.last_result()
    except UnsupportedError:
        account = None
    if account is not None:
        account = with_master(account, args)
        _print_summary(account, image_bytes)
        return 1 if account["outcome"] == "error" else 0
    # A driver that is not stddaq's: list the files that are visible from here.
    print("saved; this driver keeps no account of the run")
    for path in sorted(Path(args.path).glob(f"{args.prefix}*.h5")):
        print(f"file        {path} ({bytes_text(path.stat().st_size)})")
    return 0


def _print_summary(account: Mapping[str, Any], image_bytes: int | None) -> None:
    from stddaq.cli.account import account_lines

    print("\n".join(account_lines(account, image_bytes or _image_bytes_of(account.get("files")))))


def _image_bytes(config: str | None) -> int | None:
    if config is None:
        return None
    from stddaq.config import DetectorConfig

    return DetectorConfig.load(config).image_bytes


def _image_bytes_of(files: Any) -> int | None:
    """Return the bytes of one uncompressed image, from raw files; None if they are not visible from here."""
    if not files:
        return None
    parts = files.get("raw_of_parts") or [files.get("raw")]
    sizes = [_image_bytes_in(paths[0]) if paths else None for paths in parts]
    return None if None in sizes else sum(size or 0 for size in sizes)


def _image_bytes_in(path: str) -> int | None:
    # Unlike Path.exists(), this is False also for a path that this user may not search.
    if not os.path.exists(path):  # noqa: PTH110
        return None
    import h5py

    try:
        with h5py.File(path, "r", swmr=True, locking=False) as file:
            for group in file.values():
                if isinstance(group, h5py.Group) and isinstance(data := group.get("data"), h5py.Dataset):
                    return data.dtype.itemsize * data.shape[1] * data.shape[2]
    except (OSError, RuntimeError):
        return None  # Not a raw file, or not complete yet.
    return None
