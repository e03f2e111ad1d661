"""`make chaos`: random harm to real services, after which every image that is called good is compared.

An episode is one deployment of real services. Each of its rounds is a run with random harm, after which the
services are continued or restarted, and a run without harm, which must be perfect. After each run, the
images that files, account and live stream call good are compared with the published ones, by pixels and
ids. A seed chooses the services, the harm and its times.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  (registers the filters)
import numpy as np
import zmq
from support.peers.chaos_source import RECORD, publication_of
from support.processes.deployment import SHM_DIRECTORY, Deployment, Service, free_port
from support.processes.recording import assert_consistent

from stddaq.client import DriverClient, DriverError
from stddaq.closing import Closing, exit_at_signals
from stddaq.files.reading import open_run
from stddaq.wire.array10 import decode

GOOD, DAMAGED, OVERWRITTEN = 1, 2, 3
TESTS = Path(__file__).parents[2]
ROUNDS = 5
# How long harm lasts at most, and how soon a harmed run must end after all services were continued.
HARM_S = 1.2
END_S = 15.0
# Within this time services notice and replace removed files.
HEAL_S = 3.0
CHAINS = ("plain", "plain", "compressed", "filtered", "third-party")
# Harm that is listed twice is chosen twice as often.
HARM = (
    *("kill", "kill", "term", "hang up", "stop", "stop", "late driver"),
    *("remove ring", "rename ring", "remove cursor", "remove socket"),
    *("remove raw file", "rename raw file", "rename directory", "fill"),
    *("disorder", "disorder", "slow viewer", "vanishing client", "full log"),
)
SERIALS_PER_PROCESS = 10**7
RATE_HZ = 700
N_CLEAN = 100


@dataclass(frozen=True, slots=True)
class Finding:
    """A broken promise. Kind `wrong`: a bad image was called good, which is severity A."""

    kind: str
    where: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.where}: {self.text}"


class Viewer:
    """A subscriber of the live stream in a thread, which compares every good image."""

    def __init__(self, address: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.subscribe(b"")
        self._socket.connect(address)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._seen: list[tuple[int, tuple[int, int] | None]] = []
        self._thread.start()

    def _work(self) -> None:
        while not self._ended.is_set():
            if self._socket.poll(50):
                message = decode(self._socket.recv_multipart())
                if message.status is None:
                    self._seen.append((message.image_id, publication_of(message.pixels)))

    def take(self) -> list[tuple[int, tuple[int, int] | None]]:
        """Return (announced id, publication of the pixels) of the good images since the last call."""
        n = len(self._seen)
        seen, self._seen[:n] = self._seen[:n], []
        return seen

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        self._context.destroy(linger=0)


class Truth:
    """All publications of the sources: serial number -> (image id, status)."""

    def __init__(self, log: Path) -> None:
        self._log, self._position = log, 0
        self.published: dict[int, tuple[int, int]] = {}

    def read(self) -> None:
        """Read new entries of the log."""
        if not self._log.exists():
            return
        with self._log.open("rb") as file:
            file.seek(self._position)
            content = file.read()
        whole = len(content) // RECORD.size * RECORD.size
        self._position += whole
        for serial, image_id, status in RECORD.iter_unpack(content[:whole]):
            self.published[serial] = image_id, status

    def fault(self, image_id: int, publication: tuple[int, int] | None) -> str | None:
        """Return what is wrong with an image that is called good, or None."""
        if publication is None:
            return f"image {image_id}: good with pixels of no image"
        serial, stamped = publication
        if stamped != image_id:
            return f"image {image_id}: good with the pixels of image {stamped} (publication {serial})"
        if self.published.get(serial) is None:
            return f"image {image_id}: publication {serial} was never made"
        found_id, status = self.published[serial]
        if found_id != image_id:
            return f"image {image_id}: publication {serial} had the id {found_id}"
        return None if status == GOOD else f"image {image_id}: good, published as damaged"


class Episode(Closing):
    """One deployment, its rounds and their findings; a context manager."""

    def __init__(self, directory: Path, seed: str, quiet: tuple[str, ...] = ()) -> None:
        """Start all services. Harm whose name is in `quiet` is left out."""
        self.seed, self.findings = seed, list[Finding]()
        self.n_runs = self.n_good = self.n_bad = 0
        self.harm: Counter[str] = Counter()
        self._random = random.Random(seed)
        self._quiet = quiet
        self._directory = directory / "files"
        self._directory.mkdir()
        self._stack = ExitStack()
        self._stopped: set[str] = set()
        self._ended: set[Service] = set()
        self._checked_lines: dict[Service, int] = {}
        self._where = f"seed {seed}, start"
        self.chain = self._random.choice(CHAINS)
        self.n_writers = self._random.randint(2, 4)
        address = f"tcp://127.0.0.1:{free_port()}"
        self._address = address
        self._deployment = deployment = Deployment(
            directory,
            number_of_writers=self.n_writers,
            image_pixel_height=8,
            image_pixel_width=16,
            live_stream_configs={address: {"type": "forward", "config": []}},
        )
        deployment.env["PYTHONPATH"] = str(TESTS)
        self._orders = directory / "orders.json"
        self._order(0)
        self._log = directory / "published"
        self.truth = Truth(self._log)
        self._n_sources = 0
        self.services: dict[str, Service] = {}
        self._client: DriverClient | None = None
        try:
            self._start_all()
            self.viewer = Viewer(address)
            self._stack.callback(self.viewer.close)
            self._context = zmq.Context()
            self._slow_viewers: list[zmq.Socket] = []
            self._stack.callback(self._context.destroy, linger=0)
        except BaseException:
            self._stack.close()
            self._close_deployment()
            raise

    # Services

    def _starters(self) -> dict[str, Callable[[], Service]]:
        deployment = self._deployment
        stream, ring = {
            "compressed": ("h5bitshuffle-lz4", "h5bitshuffle-lz4"),
            "filtered": ("filter", "image"),
        }.get(self.chain, ("image", "image"))
        starters: dict[str, Callable[[], Service]] = {"source": self._start_source}
        if self.chain == "compressed":
            starters["compressor"] = lambda: deployment.start(
                "std_data_compress_h5bitshuffle_lz4", "-t", 1, ready="ready"
            )
        if self.chain == "filtered":
            starters["filter"] = lambda: deployment.start("std_gf_filter", "-n")
        starters["driver"] = lambda: self._start_driver(stream)
        for i in range(self.n_writers):
            starters[f"writer {i}"] = lambda i=i: deployment.start("std_det_writer", i, "-s", ring)
        starters["meta"] = lambda: deployment.start("std_det_meta_writer_gf")
        starters["live stream"] = lambda: deployment.start("std_live_stream", self._address)
        return starters

    def _start_source(self) -> Service:
        self.truth.read()
        first_id = 0
        if self.truth.published and self._random.random() < 0.7:
            first_id = max(image_id for image_id, _ in self.truth.published.values()) + 1
        serial = self._n_sources * SERIALS_PER_PROCESS + 1
        self._n_sources += 1
        program = (sys.executable, "-m", "support.peers.chaos_source")
        kind = "third-party" if self.chain == "third-party" else "own"
        return self._deployment.run(
            *program,
            self._deployment.config_path,
            self._log,
            self._orders,
            serial,
            first_id,
            RATE_HZ,
            kind,
            ready="ready",
        )

    def _start_driver(self, stream: str) -> Service:
        service, self._url = self._deployment.start_driver("-m", "-s", stream)
        return service

    def _start_all(self) -> None:
        for name, start in self._starters().items():
            self.services[name] = start()

    def _start(self, name: str) -> None:
        try:
            self.services[name] = self._starters()[name]()
        except AssertionError as error:
            self._find("does not start", f"{name}: {error}")

    def _order(self, disorder: float) -> None:
        new = self._orders.with_suffix(".new")
        new.write_text(str(disorder))
        new.replace(self._orders)

    def client(self) -> DriverClient:
        """Return a connected client of the current driver."""
        self._close_client()
        self._client = DriverClient(self._url).connect()
        return self._client

    def _close_client(self) -> None:
        if self._client is not None:
            with contextlib.suppress(DriverError):
                self._client.close()
            self._client = None

    # Harm

    def _plan(self) -> list[tuple[float, str, Callable[[], None]]]:
        """Return the harm of a run: (seconds after the start, name, action)."""
        chance = self._random
        names = list(self.services)
        plan: list[tuple[float, str, Callable[[], None]]] = []

        def add(at: float, name: str, do: Callable[[], None]) -> None:
            if name not in self._quiet:
                plan.append((at, name, do))

        for _ in range(chance.randint(1, 3)):
            at, name = chance.uniform(0, HARM_S), chance.choice(names)
            after = at + chance.uniform(0.02, HARM_S)
            kind = chance.choice(HARM)
            if kind in ("kill", "term", "hang up"):
                number = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "hang up": signal.SIGHUP}[kind]
                add(at, kind, lambda name=name, number=number: self._end(name, number))
                if chance.random() < 0.5:
                    add(after, kind, lambda name=name: self._restart(name))
            elif kind == "stop":
                add(at, kind, lambda name=name: self._stop(name))
                if chance.random() < 0.7:
                    add(after, kind, lambda name=name: self._continue(name))
            elif kind == "late driver":
                add(at, kind, lambda: self._end("driver", signal.SIGTERM))
                add(after, kind, lambda: self._restart("driver"))
            elif kind in ("remove ring", "rename ring", "remove cursor"):
                add(at, kind, lambda kind=kind: self._harm_segment(kind))
            elif kind == "remove socket":
                add(at, kind, self._remove_socket)
            elif kind in ("remove raw file", "rename raw file"):
                add(at, kind, lambda kind=kind: self._harm_raw_file(kind))
            elif kind == "rename directory":
                add(at, kind, self._rename_directory)
            elif kind == "fill":
                add(at, kind, lambda: self._fill(f"writer {chance.randrange(self.n_writers)}"))
            elif kind == "disorder":
                add(0.0, kind, lambda: self._order(0.05))
            elif kind == "slow viewer":
                add(at, kind, self._slow_viewer)
            elif kind == "vanishing client":
                add(at, kind, self._close_client)
            else:
                add(at, kind, lambda name=name: self._fill_log(name))
        return sorted(plan, key=lambda step: step[0])

    def _end(self, name: str, number: int) -> None:
        service = self.services[name]
        self._ended.add(service)
        service.send(number)

    def _restart(self, name: str) -> None:
        service = self.services[name]
        if name in self._stopped:
            self._continue(name)
        if service.returncode is None and service in self._ended:
            with contextlib.suppress(AssertionError):
                service.wait(5)
        if service.returncode is not None:
            self._start(name)

    def _stop(self, name: str) -> None:
        self._stopped.add(name)
        self.services[name].send(signal.SIGSTOP)

    def _continue(self, name: str) -> None:
        self._stopped.discard(name)
        self.services[name].send(signal.SIGCONT)

    def _harm_segment(self, kind: str) -> None:
        segments = self._deployment.segments()
        mine = [name for name in segments if name.endswith("-cursor") == (kind == "remove cursor")]
        if not mine:
            return
        path = SHM_DIRECTORY / self._random.choice(mine)
        if kind == "rename ring":
            with contextlib.suppress(FileNotFoundError):
                path.rename(path.with_name(f"{path.name}-renamed"))
        else:
            path.unlink(missing_ok=True)

    def _remove_socket(self) -> None:
        if names := self._deployment.sockets():
            (self._deployment.ipc_directory / self._random.choice(names)).unlink(missing_ok=True)

    def _harm_raw_file(self, kind: str) -> None:
        path = self._run_directory / f"file{self._random.randrange(self.n_writers)}.h5"
        with contextlib.suppress(FileNotFoundError):
            if kind == "remove raw file":
                path.unlink()
            else:
                path.rename(path.with_name("renamed.h5"))
            self._harmed_files = True

    def _rename_directory(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._run_directory.rename(self._run_directory.with_name(f"{self._run_directory.name}-renamed"))
            self._harmed_files = True

    def _fill(self, name: str) -> None:
        """Make the writes of a service beyond a file size fail, as on a full file system."""
        with contextlib.suppress(ProcessLookupError):
            _, hard = resource.prlimit(self.services[name].pid, resource.RLIMIT_FSIZE)
            resource.prlimit(self.services[name].pid, resource.RLIMIT_FSIZE, (40_000, hard))
            self._filled.append((self.services[name], hard))

    def _slow_viewer(self) -> None:
        socket = self._context.socket(zmq.SUB)
        socket.rcvhwm = 1
        socket.subscribe(b"")
        socket.connect(self._address)
        self._slow_viewers.append(socket)

    def _fill_log(self, name: str) -> None:
        """Stop reading the log of a service, and fill its pipe."""
        service = self.services[name]
        service.pause_reading()
        self._paused.append(service)
        with contextlib.suppress(OSError):
            pipe = os.open(f"/proc/{service.pid}/fd/1", os.O_WRONLY | os.O_NONBLOCK)
            try:
                for _ in range(10_000):
                    os.write(pipe, b"\n" * 512)
            finally:
                os.close(pipe)

    # Runs

    def round(self) -> None:
        """Do a run with harm, and one without."""
        self._begin_run("harmed")
        plan = self._plan()
        self.harm.update(name for _, name, _ in plan)
        names = ", ".join(f"{name} at {at:.2f} s" for at, name, _ in plan)
        self._where = f"seed {self.seed}, run {self.n_runs} ({self.chain}, {self.n_writers} writers; {names})"
        account = self._harmed_run(plan)
        self._heal()
        self._check_run(account)
        self._begin_run("clean")
        self._where = f"seed {self.seed}, run {self.n_runs} ({self.chain}, without harm, after {names})"
        if not self._clean_run():
            self.restart_everything()

    def _begin_run(self, kind: str) -> None:
        self.n_runs += 1
        self._run_directory = self._directory / f"{kind}{self.n_runs}"
        self._run_directory.mkdir()
        self._harmed_files = False
        self._filled: list[tuple[Service, int]] = []
        self._paused: list[Service] = []

    def _harmed_run(self, plan: list[tuple[float, str, Callable[[], None]]]) -> dict[str, Any] | None:
        n_image = self._random.choice([50, 300, 10**6])
        begin = time.monotonic()
        started = self._random.random() < 0.8
        if started:  # Otherwise harm starts before the run.
            with contextlib.suppress(DriverError):
                self.client().start(self._run_directory, n_image=n_image)
        for at, _, do in plan:
            time.sleep(max(0.0, begin + at - time.monotonic()))
            do()
        if not started:
            with contextlib.suppress(DriverError):
                self.client().start(self._run_directory, n_image=n_image, timeout=3)
        time.sleep(max(0.0, begin + HARM_S / 2 - time.monotonic()))
        for name in list(self._stopped):
            self._continue(name)
        self._release()
        with contextlib.suppress(DriverError):
            self.client().stop(timeout=3)
        return self._wait_for_idle()

    def _wait_for_idle(self) -> dict[str, Any] | None:
        """Wait until the driver is idle. Return the account of its last run."""
        if self.services["driver"].returncode is not None:
            return None
        deadline = time.monotonic() + END_S
        state = "not reachable"
        while time.monotonic() < deadline:
            try:
                client = self._client or self.client()
                state = client.status(timeout=2).status
                if state == "idle":
                    return client.last_result(timeout=2)
                if state in ("waiting_for_first_image", "recording"):
                    client.stop(timeout=2)
            except DriverError as error:
                state = str(error)
                if self.services["driver"].returncode is not None:
                    return None
                self._close_client()
            time.sleep(0.05)
        self._find("hangs", f"the driver is still {state} after {END_S:g} s\n{self._tail('driver')}")
        return None

    def _release(self) -> None:
        for service, hard in self._filled:
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(service.pid, resource.RLIMIT_FSIZE, (hard, hard))
        for service in self._paused:
            service.continue_reading()

    def _heal(self) -> None:
        """Continue and restart services, as an operator does. Services must repair the rest themselves."""
        self._order(0)
        for name in list(self._stopped):
            self._continue(name)
        for name, service in list(self.services.items()):
            if service in self._ended:
                try:
                    code = service.wait(5)
                except AssertionError:
                    self._find("hangs", f"{name} does not end after its signal\n{self._tail(name)}")
                    service.kill()
                    code = -signal.SIGKILL
                if code not in (0, -signal.SIGKILL):
                    self._find("crash", f"{name}: exit code {code} after a signal\n{self._tail(name)}")
                self._start(name)
            elif service.returncode is not None:
                self._find("ended", f"{name}: exit code {service.returncode}\n{self._tail(name)}")
                self._start(name)
        for path in SHM_DIRECTORY.glob(f"{self._deployment.detector_name}*-renamed"):
            path.unlink(missing_ok=True)
        if self.chain == "third-party" and ("remove ring" in self._where or "rename ring" in self._where):
            # A std_daq source (C++) does not notice that its ring was removed.
            self._end("source", signal.SIGTERM)
            self._restart("source")
        time.sleep(HEAL_S if self._was_removed() else 0.3)

    def _was_removed(self) -> bool:
        return "remove" in self._where or "rename ring" in self._where

    def _clean_run(self) -> bool:
        """Do a run that must be perfect. Return whether it was."""
        n_before = len(self.findings)
        try:
            client = self.client()
            client.start(self._run_directory, n_image=N_CLEAN)
            client.wait_until_saved(END_S)
            account = client.last_result()
        except (DriverError, OSError) as error:
            self._find("not perfect", f"{type(error).__name__}: {error}")
            account = self._wait_for_idle()
        else:
            if account is None or (account["n_good"], account["n_skipped"]) != (N_CLEAN, 0):
                self._find("not perfect", f"{account}")
        serials = self._check_run(account)
        if len(self.findings) == n_before and np.any(np.diff(sorted(serials)) != 1):
            self._find("not perfect", f"images between those of the run are missing: {sorted(serials)}")
        return len(self.findings) == n_before

    def restart_everything(self) -> None:
        """Terminate services that did not recover, remove their leftovers, and start all again."""
        self._close_client()
        for name in reversed(list(self.services)):
            service = self.services[name]
            service.send(signal.SIGCONT)
            if service.returncode is None:
                try:
                    service.end(timeout=5)
                except AssertionError:
                    self._find("hangs", f"{name} does not end after SIGTERM\n{self._tail(name)}")
                    service.kill()
        self._deployment.remove_leftovers()
        self._start_all()

    # Checks

    def _check_run(self, account: Mapping[str, Any] | None) -> list[int]:
        """Check files, account, live stream and logs. Returns the serial numbers of the good images."""
        seen = self.viewer.take()
        self.truth.read()  # Read after the stream, because a publication is logged before it is made.
        directory = self._run_directory
        if not directory.exists():
            directory = directory.with_name(f"{directory.name}-renamed")
        if account is not None and not _is_of(account, self._run_directory):
            account = None  # It is the account of an earlier run.
        serials: list[int] = []
        ids: Counter[int] = Counter()
        for path in sorted(directory.glob("*.h5")):
            if path.name.endswith(("Master.h5", "Meta.h5")):
                continue
            found = self._check_raw_file(path)
            serials += [serial for serial, _ in found]
            ids.update(image_id for _, image_id in found)
        if account is not None:
            self._check_account(account, directory, ids)
        repeated = [serial for serial, n in Counter(serials).items() if n > 1]
        if repeated and self.chain != "third-party":
            self._find("wrong", f"publications {repeated[:5]} are recorded twice")
        self._find_all("live stream", [self.truth.fault(*image) for image in seen])
        self._check_logs()
        self.n_good += len(serials)
        shutil.rmtree(directory, ignore_errors=True)
        return serials

    def _check_raw_file(self, path: Path) -> list[tuple[int, int]]:
        """Return (serial number, image id) of each good image of a raw file."""
        found: list[tuple[int, int]] = []
        try:
            rows, images = _read(path)
        except (OSError, KeyError, StopIteration):
            return (
                found  # A writer was killed before its first flush; the account shows whether that matters.
            )
        faults: list[str | None] = []
        for row, pixels in zip(rows, images, strict=False):
            image_id, status = int(row["image_id"]), int(row["status"])
            if status == GOOD:
                publication = publication_of(pixels)
                fault = self.truth.fault(image_id, publication)
                if fault is None and publication is not None:
                    found.append((publication[0], image_id))
                faults.append(fault)
            elif status == OVERWRITTEN and pixels.any():
                faults.append(f"image {image_id}: overwritten, with pixels of another image")
        self._find_all(path.name, faults)
        return found

    def _check_account(self, account: Mapping[str, Any], directory: Path, ids: Counter[int]) -> None:
        parts = [account[f"n_{part}"] for part in ("good", "damaged", "overwritten", "failed")]
        if sum(parts) != account["count"]:
            self._find("account", f"count is not the sum of its parts: {account}")
        if not account["n_restarts"] and "disorder" not in self._where:
            try:
                assert_consistent(account)
            except AssertionError as error:
                self._find("account", str(error))
        n_readable = sum(ids.values())
        if account["n_good"] > n_readable and not self._harmed_files:
            numbers = {key: value for key, value in account.items() if key.startswith("n_")}
            self._find("wrong", f"{n_readable} good images in the files of the account {numbers}")
        if account["outcome"] != "file_saved":
            return
        if self._harmed_files and any(not Path(path).exists() for path in account["files"]["raw"]):
            # Services cannot notice that a closed file is removed.
            self.n_bad += 1
            return
        n_good = account["n_good"]
        # The driver does not know which image of a repeated id was damaged, and which was overwritten.
        without_pixels = {*account["overwritten_ids"], *account["failed_ids"]}
        n_unknown = sum(image_id in without_pixels for image_id in account["damaged_ids"])
        if not n_good <= n_readable <= n_good + n_unknown:
            self._find("account", f"{n_readable} good images in the files of the account {account}")
        self._check_master(directory / "fileMaster.h5", n_readable)

    def _check_master(self, path: Path, n_readable: int) -> None:
        try:
            with open_run(path) as run:
                n_good, faults = 0, list[str | None]()
                for position, (image_id, status) in enumerate(
                    zip(run.image_ids.tolist(), run.status.tolist(), strict=True)
                ):
                    if status == GOOD:
                        n_good += 1
                        publication = publication_of(run.images[position])
                        faults.append(self.truth.fault(image_id, publication))
            self._find_all(path.name, faults)
        except Exception as error:  # noqa: BLE001  (a user would meet the same error)
            self._find("account", f"{path.name} of a saved run: {type(error).__name__}: {error}")
            return
        if n_good != n_readable:
            self._find("account", f"{path.name}: {n_good} good images, {n_readable} in the raw files")

    def _check_logs(self) -> None:
        for name, service in self.services.items():
            lines = [*service.stdout, *service.stderr]
            first = self._checked_lines.get(service, 0)
            self._checked_lines[service] = len(lines)
            if any(re.search(r"^Traceback|Fatal Python error", line) for line in lines[first:]):
                self._find("traceback", f"{name}\n{self._tail(name, 25)}")

    def _tail(self, name: str, n: int = 8) -> str:
        lines = self.services[name].output.splitlines()
        return "\n".join(f"    {line}" for line in [line for line in lines if line.strip("! ")][-n:])

    def _find_all(self, what: str, faults: Sequence[str | None]) -> None:
        """Add one finding for all images that are wrongly called good."""
        wrong = [fault for fault in faults if fault is not None]
        if wrong:
            self._find("wrong", f"{what}: {len(wrong)} images, the first: {wrong[0]}; the last: {wrong[-1]}")

    def _find(self, kind: str, text: str) -> None:
        self.findings.append(Finding(kind, self._where, text))

    # End

    def _close_deployment(self) -> None:
        try:
            self._deployment.close()
        except AssertionError as error:
            self._where = f"seed {self.seed}, end ({self.chain}; {dict(self.harm)})"
            self._find("end", str(error))

    def close(self) -> None:
        self._close_client()
        self._stack.close()
        self._close_deployment()


def _is_of(account: Mapping[str, Any], directory: Path) -> bool:
    return any(Path(path).parent == directory for path in account["files"]["raw"])


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return (rows, images) of a raw file, closed or not."""
    try:
        file = h5py.File(path, "r")
    except OSError:
        file = h5py.File(path, "r", swmr=True)
    with file:
        group: Any = next(iter(file.values()))
        rows = group["metadata"][:]
        return rows, group["data"][: len(rows)]


def run_episode(seed: str, rounds: int = ROUNDS, quiet: tuple[str, ...] = ()) -> Episode:
    """Run one episode in a directory of its own."""
    with (
        tempfile.TemporaryDirectory(prefix="stddaq-chaos-") as directory,
        Episode(Path(directory), seed, quiet) as episode,
    ):
        for _ in range(rounds):
            episode.round()
    return episode


def main(argv: Sequence[str] | None = None) -> int:
    """Run episodes and print the findings. Return 1 if a promise was broken."""
    parser = argparse.ArgumentParser(
        description="Random harm to real services: no wrong image is called good."
    )
    parser.add_argument("--runs", type=int, default=100, help="minimum number of runs (default 100)")
    parser.add_argument("--minutes", type=float, default=10.0, help="time limit (default 10)")
    parser.add_argument(
        "--seed", default=str(time.time_ns() % 2**32), help="seed of all episodes, or of one (N:M)"
    )
    parser.add_argument("--without", action="append", default=[], metavar="HARM", help="leave this harm out")
    args = parser.parse_args(argv)
    exit_at_signals()
    print(f"--seed {args.seed}", flush=True)
    deadline = time.monotonic() + args.minutes * 60
    n_runs = n_good = 0
    found: Counter[str] = Counter()
    harm: Counter[str] = Counter()
    seeds = iter([args.seed]) if ":" in args.seed else (f"{args.seed}:{i}" for i in range(10**6))
    for seed in seeds:
        if n_runs >= args.runs or time.monotonic() > deadline:
            break
        episode = run_episode(seed, quiet=tuple(args.without))
        n_runs += episode.n_runs
        n_good += episode.n_good
        harm.update(episode.harm)
        for finding in episode.findings:
            found[finding.kind] += 1
            print(f"\n{finding}", flush=True)
        print(f"{n_runs} runs, {n_good} good images compared, findings: {dict(found)}", flush=True)
    print(f"harm: {dict(harm)}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
