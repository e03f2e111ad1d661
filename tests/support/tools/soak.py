"""`make soak`: hundreds of consecutive runs, after which no service may use more resources.

One deployment of real services goes through runs of all lengths, stops, refused starts, clients that connect
and disconnect, and restarted writers. Every image of every run is compared with the files. Memory, file
descriptors and threads of every service, shared memory and sockets are counted after each run.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import shutil
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from support.processes.deployment import Deployment, Service
from support.processes.recording import assert_consistent, read_raw_file
from websockets.sync.client import connect

from stddaq.client import CommandRefusedError, DriverBusyError, DriverClient
from stddaq.client.simulator import SimulatorClient
from stddaq.closing import Closing, exit_at_signals
from stddaq.config import DetectorConfig
from stddaq.files.reading import open_run
from stddaq.sources.simulated.scenes import Scene

RATE_HZ = 4000
# Most runs are short, because a leak grows with the number of runs.
LENGTHS = (0, 1, 1, 2, 3, 10, 10, 50, 50, 200, 500, 3000)
RESTART_EVERY = 25
GOOD, OVERWRITTEN = 1, 3
TIMEOUT_S = 60.0
# A service notices within this time that a visitor is gone, on a busy machine.
SETTLED_S = 10.0
# Limit of anonymous memory, from the first tenth after the warm-up to the last; allocators vary by as much.
GROWTH_LIMIT_KIB = 3 * 1024


@dataclass(frozen=True, slots=True)
class Sample:
    """Resources of a service: anonymous memory in KiB, open file descriptors, threads."""

    memory: int
    descriptors: int
    threads: int

    @classmethod
    def of(cls, service: Service) -> Sample:
        process = Path(f"/proc/{service.pid}")
        status = (process / "status").read_text(encoding="ascii", errors="replace")
        numbers = {name: int(value) for name, value in re.findall(r"^(\w+):\s+(\d+)", status, re.MULTILINE)}
        return cls(numbers["RssAnon"], len(list((process / "fd").iterdir())), numbers["Threads"])


@dataclass(slots=True)
class Growth:
    """The samples of one service over all runs."""

    name: str
    samples: list[Sample] = field(default_factory=list)

    def tenths(self, of: Callable[[Sample], int]) -> tuple[float, float]:
        """Return the medians of the second tenth (the first is warm-up) and of the last tenth."""
        n = max(1, len(self.samples) // 10)
        values = [of(sample) for sample in self.samples]
        return statistics.median(values[n : 2 * n] or values), statistics.median(values[-n:])

    def memory_per_run(self) -> float:
        """Return the growth of memory in KiB per run: the slope of a fitted line, after the warm-up."""
        values = [sample.memory for sample in self.samples[len(self.samples) // 10 :]]
        return statistics.linear_regression(range(len(values)), values).slope if len(values) > 2 else 0.0

    def complaints(self) -> list[str]:
        """Return the resources of which the service holds more at the end."""
        found = []
        for what, of, limit in (
            ("KiB of memory", lambda sample: sample.memory, GROWTH_LIMIT_KIB),
            ("file descriptors", lambda sample: sample.descriptors, 0),
            ("threads", lambda sample: sample.threads, 0),
        ):
            first, last = self.tenths(of)
            if last > first + limit:
                found.append(f"{self.name}: {last:g} {what} at the end, {first:g} at the beginning")
        return found


def _settled(service: Service, n_descriptors: int) -> Sample:
    """Return a sample after the connections of visitors are closed: `n_descriptors` remain, or a leak."""
    end = time.monotonic() + SETTLED_S
    while (sample := Sample.of(service)).descriptors > n_descriptors and time.monotonic() < end:
        time.sleep(0.05)
    return sample


class Soak(Closing):
    """One deployment and the runs on it; a context manager."""

    def __init__(self, directory: Path, seed: int) -> None:
        self._random = random.Random(seed)
        self._directory = directory
        self._close = ExitStack()
        self.n_runs = self.n_images = self.n_overwritten = self.n_restarts = self.n_refused = 0
        self.n_clients = 0
        self.leftovers: list[tuple[int, int]] = []

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._deployment = deployment = Deployment(
                self._directory, preloaded=False, stats_collection_period=10
            )
            stack.callback(deployment.close)
            config = DetectorConfig.parse(deployment.config)
            self._scene = Scene.of(config, "rings", 0)
            self._pixels = np.empty(config.image_shape, config.dtype)
            driver, self._url = deployment.start_driver("-m")
            writers = deployment.start_writers()
            simulate = ("simulate", deployment.config_path, "--trigger", "--rate", RATE_HZ)
            self.services = {
                "std_det_driver": driver,
                "std_det_writer 0": writers[0],
                "std_det_writer 1": writers[1],
                "std_det_meta_writer_gf": deployment.start("std_det_meta_writer_gf"),
                "stddaq simulate": deployment.run(deployment.stddaq, *simulate, ready="ready"),
            }
            self.growth = {name: Growth(name) for name in self.services}
            self._client = stack.enter_context(DriverClient(self._url))
            # The client must use the services' ipc directory.
            with _ipc_directory(deployment):
                self._simulator = stack.enter_context(SimulatorClient(deployment.detector_name))
            self._close = stack.pop_all()
        return self

    def close(self) -> None:
        self._close.close()

    def run(self, restart: bool = False) -> None:
        """Do one run with visitors and refused starts; first restart a writer if `restart`."""
        self.n_runs += 1
        length = self._random.choice(LENGTHS)
        directory = self._directory / f"run{self.n_runs}"
        directory.mkdir()
        try:
            if restart:
                self._restart_a_writer()
            if self._random.random() < 0.3:
                self._be_refused(directory)
            with self._visitors():
                self._record(directory, length, stop=self._random.random() < 0.3)
        finally:
            shutil.rmtree(directory)
        self._sample()

    def _record(self, directory: Path, length: int, stop: bool) -> None:
        client = self._client
        begin: dict[str, Any] = {} if stop else {"n_image": length}
        client.start(directory, **begin)
        first_id = 0
        if length or stop:
            client.wait_until_ready(TIMEOUT_S)
            with contextlib.suppress(DriverBusyError):
                client.start(directory, file_prefix="other")
                raise AssertionError("a second run was admitted")
        if length:
            first_id = self._simulator.trigger(length).first_id
        if stop:
            if length:
                client.wait_for(
                    lambda status: (status.n_received or 0) >= length, TIMEOUT_S, f"{length} images"
                )
            client.stop()
        client.wait_until_saved(TIMEOUT_S)
        result = client.last_result()
        assert result is not None
        self._check(result, directory, list(range(first_id, first_id + length)))

    def _check(self, account: dict[str, Any], directory: Path, ids: list[int]) -> None:
        """Check that account and files hold each of `ids`: all rows, and the pixels of some images."""
        assert_consistent(account)
        assert account["outcome"] == "file_saved", account
        assert account["count"] == len(ids), account
        assert account["n_dropped"] in (0, None), account
        assert account["n_good"] + account["n_overwritten"] == len(ids), account
        for writer, path in enumerate(account["files"]["raw"]):
            rows, _ = read_raw_file(Path(path))
            assert rows["image_id"].tolist() == [image_id for image_id in ids if image_id % 2 == writer]
            assert np.isin(rows["status"], (GOOD, OVERWRITTEN)).all()
        with open_run(directory / "fileMaster.h5") as run:
            assert run.image_ids.tolist() == ids
            assert int((run.status == OVERWRITTEN).sum()) == account["n_overwritten"]
            for position in {0, len(ids) // 2, len(ids) - 1} if ids else ():
                if run.status[position] == GOOD:
                    self._scene.write(ids[position], self._pixels)
                    assert np.array_equal(run.images[position], self._pixels)
        self.n_images += len(ids)
        self.n_overwritten += account["n_overwritten"]

    def _be_refused(self, directory: Path) -> None:
        """Send starts that must be refused."""
        existing = directory / "taken0.h5"
        existing.touch()
        starts: tuple[dict[str, Any], ...] = (
            {"path": directory / "missing"},
            {"path": directory, "file_prefix": "taken"},
            {"path": directory, "file_prefix": "a/b"},
            {"path": directory, "n_image": 2**62},
        )
        for start in starts:
            try:
                self._client.start(**start)
            except CommandRefusedError:
                self.n_refused += 1
            else:
                raise AssertionError(f"{start} was admitted")
        existing.unlink()

    @contextlib.contextmanager
    def _visitors(self) -> Iterator[None]:
        """Connect clients before a run; some close their connection properly, some drop it."""
        with ExitStack() as stack:
            for _ in range(self._random.randrange(4)):
                self.n_clients += 1
                # With a full queue closing would be slow.
                visitor = stack.enter_context(connect(self._url, max_queue=None))
                if self._random.random() < 0.5:
                    visitor.socket.shutdown(socket.SHUT_RDWR)
            yield

    def _restart_a_writer(self) -> None:
        """Terminate a writer and start it again."""
        number = self._random.randrange(2)
        name = f"std_det_writer {number}"
        assert self.services[name].end() == 0
        self.services[name] = self._deployment.start("std_det_writer", number)
        self.n_restarts += 1

    def _sample(self) -> None:
        for name, service in self.services.items():
            samples = self.growth[name].samples
            samples.append(_settled(service, samples[0].descriptors if samples else 0))
        self.leftovers.append((len(self._deployment.segments()), len(self._deployment.sockets())))

    def complaints(self) -> list[str]:
        """Return the resources that have grown."""
        found = [complaint for growth in self.growth.values() for complaint in growth.complaints()]
        first, last = self.leftovers[0], self.leftovers[-1]
        if last != first:
            found.append(
                f"{last[0]} segments and {last[1]} sockets at the end, {first[0]} and {first[1]} before"
            )
        return found

    def table(self) -> str:
        """Return the figures as a Markdown table: first tenth after the warm-up -> last tenth."""
        lines = [
            "| service | memory MB | growth per run | file descriptors | threads |",
            "|---|---|---|---|---|",
        ]
        for name, growth in self.growth.items():
            memory = [kib * 1.024 / 1000 for kib in growth.tenths(lambda sample: sample.memory)]
            descriptors = growth.tenths(lambda sample: sample.descriptors)
            threads = growth.tenths(lambda sample: sample.threads)
            lines.append(
                f"| {name} | {memory[0]:.1f} -> {memory[1]:.1f} | {growth.memory_per_run():+.2f} KiB "
                f"| {descriptors[0]:g} -> {descriptors[1]:g} | {threads[0]:g} -> {threads[1]:g} |"
            )
        return "\n".join(lines)

    def summary(self) -> str:
        """Return a line about what was done."""
        segments, sockets = self.leftovers[-1]
        return (
            f"{self.n_runs} runs, {self.n_images} images, all accounted for "
            f"({self.n_overwritten} overwritten in the ring), {self.n_refused} starts refused, "
            f"{self.n_clients} clients connected, {self.n_restarts} writers restarted; "
            f"{segments} segments and {sockets} sockets throughout"
        )


@contextlib.contextmanager
def _ipc_directory(deployment: Deployment) -> Iterator[None]:
    """Use the deployment's ipc directory in this process during the block."""
    before = os.environ.get("STDDAQ_IPC_DIR")
    os.environ["STDDAQ_IPC_DIR"] = str(deployment.ipc_directory)
    try:
        yield
    finally:
        if before is None:
            del os.environ["STDDAQ_IPC_DIR"]
        else:
            os.environ["STDDAQ_IPC_DIR"] = before


def main(argv: Sequence[str] | None = None) -> int:
    """Soak and print the table. Return 1 if anything has grown."""
    parser = argparse.ArgumentParser(
        description="Do hundreds of consecutive runs: no image is lost, no resource use grows."
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="duration (default 10)")
    parser.add_argument(
        "--seed", type=int, default=time.time_ns() % 2**32, help="seed of the sequence of actions"
    )
    args = parser.parse_args(argv)
    exit_at_signals()
    print(f"{args.minutes:g} minutes, --seed {args.seed}", flush=True)
    deadline = time.monotonic() + args.minutes * 60
    with (
        tempfile.TemporaryDirectory(prefix="stddaq-soak-") as directory,
        Soak(Path(directory), args.seed) as soak,
    ):
        said = time.monotonic()
        while time.monotonic() < deadline:
            soak.run(restart=soak.n_runs % RESTART_EVERY == RESTART_EVERY - 1)
            if time.monotonic() - said > 30:
                said = time.monotonic()
                memory = ", ".join(f"{growth.samples[-1].memory}" for growth in soak.growth.values())
                print(f"{soak.n_runs} runs, {soak.n_images} images; memory in KiB: {memory}", flush=True)
    print(f"\n{soak.table()}\n\n{soak.summary()}")
    complaints = soak.complaints()
    for complaint in complaints:
        print(f"grown: {complaint}", file=sys.stderr)
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
