"""Replacing the systemd units of a server: only what changed is restarted, and never during a run."""

from __future__ import annotations

import contextlib
import re
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from stddaq.errors import StdDaqError
from stddaq.new_file import replace_file
from stddaq.text import mismatch

_DRIVER = re.compile(r"std_daq-.+-std_det_driver-.+\.service")
# Keeps systemd from restarting a driver that ends after its run.
_NO_RESTART = "[Service]\nRestart=no\n"
_POLL_S = 0.2
_START_TIMEOUT_S, _SHOW_TIMEOUT_S = 300.0, 30.0


class UpdateError(StdDaqError, RuntimeError):
    """systemd refused something, or a run did not end in time."""


class Systemd:
    """The units of this machine, and `systemctl`."""

    def __init__(
        self, units: Path = Path("/etc/systemd/system"), runtime: Path = Path("/run/systemd/system")
    ):
        self.units, self.runtime = units, runtime

    def control(self, *words: str) -> None:
        """Run `systemctl`. Raise `UpdateError`."""
        _run(["systemctl", *words], _START_TIMEOUT_S)

    def state(self, unit: str) -> str:
        """Return `active`, `inactive`, `failed`, ... Raise `UpdateError`."""
        return _run(["systemctl", "show", "--property=ActiveState", "--value", unit], _SHOW_TIMEOUT_S)


def _run(command: list[str], timeout: float) -> str:
    """Return what a command prints. Raise `UpdateError`."""
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=timeout)
    except subprocess.CalledProcessError as error:
        said = " ".join(error.stderr.split()) or f"exit code {error.returncode}"
        raise UpdateError(mismatch(" ".join(command), "success", said)) from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UpdateError(mismatch(" ".join(command), "success", str(error))) from error
    return done.stdout.strip()


class UnitUpdate:
    """Replaces the units that stddaq made by `wanted`, the text of each by its name.

    `files` are the texts of configuration files by their paths, which are replaced with the units.
    """

    def __init__(
        self,
        systemd: Systemd,
        wanted: Mapping[str, str],
        run_timeout: float,
        files: Mapping[Path, str] | None = None,
    ) -> None:
        self._systemd, self._wanted, self._run_timeout = systemd, wanted, run_timeout
        self._files = {path: text for path, text in (files or {}).items() if _text_of(path) != text}
        present = {
            path.name: path.read_text()
            for path in sorted(systemd.units.glob("std_daq-*"))
            if path.suffix in (".service", ".target") and path.is_file()
        }
        self._removed = [name for name in present if name not in wanted]
        self._changed = [name for name, text in wanted.items() if present.get(name) != text]
        self._present = present

    def apply(self) -> Iterator[str]:
        """Apply the change; yield what happens. Without a change nothing is touched."""
        if not self._changed and not self._removed and not self._files:
            yield from self._start_stopped()
            return
        drivers = self._drivers()
        try:
            for driver in drivers:
                yield f"waiting: {driver} ends after the run in progress"
                self._end(driver)
            yield from self._replace()
        finally:
            for driver in drivers:
                drop_in = self._drop_in(driver)
                drop_in.unlink(missing_ok=True)
                with contextlib.suppress(OSError):
                    drop_in.parent.rmdir()  # Unless it holds others.
            self._systemd.control("daemon-reload")
        targets = [name for name in self._wanted if name.endswith(".target")]
        if targets:
            self._systemd.control("enable", *targets)
        yield from self._start_stopped()

    def _replace(self) -> Iterator[str]:
        old = [name for name in (*self._removed, *self._changed) if name in self._present]
        # Targets hold the services together; stopping one would stop services that did not change.
        if services := [name for name in old if name.endswith(".service")]:
            self._systemd.control("stop", *services)
        for name in self._removed:
            self._systemd.control("disable", name)
            (self._systemd.units / name).unlink()
            yield f"removed: {name}"
        for path, text in self._files.items():
            _replace_whole(path, text)
            yield f"changed: {path}"
        for name in self._changed:
            (self._systemd.units / name).write_text(self._wanted[name])
            yield f"changed: {name}"

    def _drivers(self) -> list[str]:
        """Return the running drivers whose runs the change would disturb."""
        touched = [name for name in (*self._removed, *self._changed) if name.endswith(".service")]
        detectors = {self._part_of(self._present.get(name) or self._wanted[name]) for name in touched}
        return [
            name
            for name, text in self._present.items()
            if _DRIVER.fullmatch(name)
            and self._part_of(text) in detectors
            and self._systemd.state(name) in ("active", "reloading")
        ]

    @staticmethod
    def _part_of(text: str) -> str:
        found = re.search(r"(?m)^PartOf=(.+)$", text)
        return found[1] if found else ""

    def _drop_in(self, unit: str) -> Path:
        return self._systemd.runtime / f"{unit}.d" / "90-update.conf"

    def _end(self, driver: str) -> None:
        """Let a driver exit after its run; it rejects others from now on."""
        drop_in = self._drop_in(driver)
        drop_in.parent.mkdir(parents=True, exist_ok=True)
        drop_in.write_text(_NO_RESTART)
        self._systemd.control("daemon-reload")
        self._systemd.control("kill", "--kill-who=main", "--signal=USR1", driver)
        deadline = time.monotonic() + self._run_timeout
        while self._systemd.state(driver) not in ("inactive", "failed"):
            if time.monotonic() > deadline:
                expected = f"the end of the run within {self._run_timeout:g} s"
                raise UpdateError(mismatch(driver, expected, "a run in progress", "nothing was changed"))
            time.sleep(_POLL_S)

    def _start_stopped(self) -> Iterator[str]:
        """Start the services that do not run, in their order."""
        down = [
            name
            for name in self._wanted
            if name.endswith(".service")
            and (self._systemd.units / name).exists()
            and self._systemd.state(name) not in ("active", "activating", "reloading")
        ]
        targets = [name for name in self._wanted if name.endswith(".target")]
        down += [name for name in targets if self._systemd.state(name) != "active"]
        if down:
            self._systemd.control("start", *down)
            yield from (f"started: {name}" for name in down)


def _replace_whole(path: Path, text: str) -> None:
    """Write a file of which services that follow it never see a part; mode and owner stay."""
    try:
        replace_file(path, text.encode())
    except FileNotFoundError:
        path.write_text(text)


def _text_of(path: Path) -> str | None:
    try:
        return path.read_text()
    except FileNotFoundError:
        return None
