"""The cost of idle daemons, the time until they are ready, and how costs scale."""

from __future__ import annotations

import statistics
import subprocess
import time
from pathlib import Path

import zmq
from rig import Rig, cpu, end, size_of, start, wait_ready
from tables import Table

from stddaq.client import DriverClient

IDLE_S = 10.0


def idle() -> Table:
    """Measure CPU and memory of idle daemons, and the time from the command to `ready`."""
    table = Table(
        "idle",
        "Idle daemons",
        f"CPU over {IDLE_S:g} s in per cent of a core, memory after a first run; `own` is memory "
        "that is not shared with another process. Targets: 0.1 % of a core for the driver, "
        "0.3 % with a client, 0.5 % for others; 60 MB own, ready within 1 s.",
        ["daemon", "ready after s", "CPU %", "memory MB", "own memory MB"],
    )
    with Rig("c", 1, with_meta=True) as rig:
        rig.fill_ring(100)
        rig.record(100, 1000.0)
        services = {
            "std_det_driver": rig.driver,
            "std_det_writer": rig.writers[0],
            "std_det_meta_writer_gf": rig.meta[0],
        }
        ready = {"std_det_driver": ("-p", 0), "std_det_writer": (0,), "std_det_meta_writer_gf": ()}
        shares = {name: _idle_share(process) for name, process in services.items()}
        memory = {name: _memory(process) for name, process in services.items()}
        with DriverClient(rig.url):
            share_with_client = _idle_share(rig.driver)
    for name, arguments in ready.items():
        table.add(name, _ready_after(name, *arguments), shares[name] * 100, *memory[name])
    table.add("std_det_driver with a client", "", share_with_client * 100, "", "")
    return table


def memory() -> Table:
    """Measure the anonymous memory of a small deployment after a run, while a viewer receives images."""
    table = Table(
        "memory",
        "Memory of a small deployment",
        "Anonymous memory (not that of files or of the ring buffer) after a run of 1000 images of 480x128, "
        "with a viewer of the live stream. Target for all four: 80 MB.",
        ["daemon", "anonymous MB"],
    )
    address = "tcp://127.0.0.1:0"
    setting = {address: {"type": "forward", "config": []}}
    with Rig("c", 2, fields={"live_stream_configs": setting}) as rig:
        service = rig.start("std_live_stream", address)
        place = wait_ready(service)
        rig.fill_ring(rig.config.n_slots)
        with zmq.Context() as context, context.socket(zmq.SUB) as viewer:
            viewer.subscribe(b"")
            viewer.connect(place)
            rig.record(1000, 1000.0)
            services = {
                "std_det_driver": rig.driver,
                "std_det_writer 0": rig.writers[0],
                "std_det_writer 1": rig.writers[1],
                "std_live_stream": service,
            }
            found = {name: _anonymous(process) for name, process in services.items()}
    for name, megabytes in found.items():
        table.add(name, megabytes)
    table.add("all", sum(found.values()))
    return table


def slow_stream(n_images: int = 200, rate: float = 40.0) -> Table:
    """Measure a driver that is woken for each image of a slow stream, with a client that watches."""
    table = Table(
        "slow",
        "Driver of a slow stream",
        f"Runs of {n_images} images at {rate:g} Hz, 2 writers, files in memory, one client. "
        "Target: 1 % of a core, twice what the C++ driver takes, 125 us per image of a.",
        ["shape", "driver us/image", "% of a core"],
    )
    for shape in ("a", "none"):
        with Rig(shape, 2) as rig:
            rig.fill_ring(rig.config.n_slots)
            rig.clear(n_images * rig.config.image_bytes)
            run = rig.record(n_images, rate)
        seconds = run.driver / n_images
        table.add(size_of(shape), seconds * 1e6, 100 * seconds * rate)
    return table


def _anonymous(process: subprocess.Popen[str]) -> float:
    lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith("Anonymous:"))


def _idle_share(process: subprocess.Popen[str]) -> float:
    time.sleep(1.0)
    before = cpu([process])
    time.sleep(IDLE_S)
    return (cpu([process]) - before) / IDLE_S


def _memory(process: subprocess.Popen[str]) -> tuple[float, float]:
    """Return (resident, own) memory in MB."""
    lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    kib = {line.split()[0].rstrip(":"): int(line.split()[1]) for line in lines[1:]}
    return kib["Rss"] / 1000, (kib["Private_Clean"] + kib["Private_Dirty"]) / 1000


def _ready_after(service: str, *arguments: object) -> float:
    """Return the median seconds of five starts."""
    seconds = []
    with Rig("none", 1) as rig:
        for process in (rig.driver, *rig.writers):
            end(process)
        for _ in range(5):
            begin = time.perf_counter()
            process = start(service, rig.config_path, *arguments)
            wait_ready(process)
            seconds.append(time.perf_counter() - begin)
            end(process)
    return statistics.median(seconds)


def growth(largest: int = 1_000_000) -> Table:
    """Measure the cost per image for runs of 10^2 to 10^6 images."""
    table = Table(
        "growth",
        "Cost per image against the number of images in a run",
        "16x16 images at 20 kHz over 2 writers. The cost of starting and ending a run, measured by runs "
        "without images, is subtracted.",
        ["images", "driver us/image", "writers us/image", "complete"],
    )
    with Rig("none", 2) as rig:
        rig.fill_ring(rig.config.n_slots)
        empty = [rig.record(0, 1.0) for _ in range(20)]
        fixed = [statistics.mean(run.driver for run in empty), statistics.mean(run.writers for run in empty)]
        n_images = 100
        while n_images <= largest:
            rig.clear(0)
            runs = [rig.record(n_images, 20_000.0) for _ in range(max(1, min(20, 20_000 // n_images)))]
            table.add(
                n_images,
                (statistics.mean(run.driver for run in runs) - fixed[0]) / n_images * 1e6,
                (statistics.mean(run.writers for run in runs) - fixed[1]) / n_images * 1e6,
                f"{sum(run.is_complete for run in runs)} of {len(runs)}",
            )
            n_images *= 10
    return table


def writers(n_images: int = 50_000) -> Table:
    """Measure the cost per image with 1 to 16 writers."""
    table = Table(
        "writers",
        "Cost per image against the number of writers",
        f"Runs of {n_images} images of 16x16 at 10 kHz; each row adds up all its writers.",
        ["writers", "driver us/image", "writers us/image", "complete"],
    )
    for n_writers in (1, 2, 4, 8, 16):
        with Rig("none", n_writers) as rig:
            rig.fill_ring(n_images)
            rig.record(1000, 10_000.0)
            run = rig.record(n_images, 10_000.0)
        table.add(n_writers, run.driver / n_images * 1e6, run.writers / n_images * 1e6, str(run.is_complete))
    return table
