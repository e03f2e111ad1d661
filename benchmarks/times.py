"""Durations: until an image is readable, of the start and end of a run, of creating the master file."""

from __future__ import annotations

import asyncio
import multiprocessing
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from recorded import write_raw_files
from rig import SHAPES, Rig, size_of
from tables import Table, spread

from stddaq.client import AsyncDriverClient
from stddaq.files.master_file import create_master_file

READER_TIMEOUT_S = 30.0


def latency() -> Table:
    """Measure from publishing an image until another process has read its row and pixels (SWMR)."""
    table = Table(
        "latency",
        "From publishing an image to another process reading it (SWMR)",
        "One writer, files in memory; the reader keeps the file open and polls about every millisecond; its "
        "own time is included. Targets: 50 ms in step scans (bursts with pauses); 99 % within 20 ms at "
        "1 kHz, within 50 ms at 10 kHz. Copying c at 10 kHz takes this machine a whole core.",
        ["shape", "images", "median ms", "95 % ms", "99 % ms", "longest ms"],
    )
    cases = {
        "b": (
            ("one every 100 ms", 10, 1, 40),
            ("one every 20 ms", 50, 1, 100),
            ("bursts of 10 every 200 ms", 5, 10, 200),
            ("100 Hz", 100, 1, 200),
            ("1 kHz", 1000, 1, 1500),
            ("3 kHz", 3000, 1, 4500),
        ),
        # In bursts of a millisecond, because a source that sleeps for each image takes a core of its own.
        "c": (("5 kHz", 1000, 5, 7500), ("10 kHz", 1000, 10, 15_000)),
        "none": (("10 kHz", 1000, 10, 15_000),),
    }
    for shape, streams in cases.items():
        with Rig(shape) as rig:
            rig.fill_ring(rig.config.n_slots)
            for name, rate, burst, n_images in streams:
                rig.clear(n_images * rig.config.image_bytes)
                delays = sorted(asyncio.run(_delays(rig, rate, burst, n_images)))
                percentiles = (delays[int(part * len(delays))] * 1e3 for part in (0.95, 0.99))
                median, longest = statistics.median(delays) * 1e3, delays[-1] * 1e3
                table.add(size_of(shape), name, median, *percentiles, longest)
    return table


async def _delays(rig: Rig, rate: float, burst: int, n_images: int) -> list[float]:
    """Return the seconds from each image's publication until it is readable."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    async with AsyncDriverClient(rig.url) as client:
        await client.start(str(rig.files), n_image=n_images, overwrite=True)
        await client.wait({"waiting_for_first_image"}, timeout=10)
        arguments = (theirs, str(rig.files / "file0.h5"), rig.config.detector_name, n_images)
        reader = spawn.Process(target=_watch_rows, args=arguments, daemon=True)
        reader.start()
        await asyncio.to_thread(ours.poll, READER_TIMEOUT_S)
        ours.recv()
        published = await asyncio.to_thread(_publish, rig, rate, burst, n_images)
        await client.wait_until_saved(timeout=60)
    if not ours.poll(READER_TIMEOUT_S):
        raise SystemExit("the reader did not see all images")
    seen: list[float] = ours.recv()
    reader.join(READER_TIMEOUT_S)
    return [there - here for here, there in zip(published, seen, strict=True)]


def _publish(rig: Rig, rate: float, burst: int, n_images: int) -> list[float]:
    published, begin = [], time.monotonic()
    for i in range(n_images):
        time.sleep(max(0.0, begin + i // burst / rate - time.monotonic()))
        rig.publisher.begin(i)
        rig.publisher.commit(i)
        published.append(time.monotonic())
    return published


def _watch_rows(channel: Connection, path: str, detector_name: str, n_images: int) -> None:
    """Note when each row and its pixels could first be read. Runs in a process of its own."""
    seen: list[float] = []
    deadline = time.monotonic() + READER_TIMEOUT_S
    with h5py.File(path, "r", libver="latest", swmr=True, locking=False) as file:
        rows: Any = file[f"{detector_name}/metadata"]
        data: Any = file[f"{detector_name}/data"]
        channel.send("ready")
        while len(seen) < n_images and time.monotonic() < deadline:
            rows.refresh()
            n_rows = rows.shape[0]
            if n_rows > len(seen):
                data.refresh()
                _ = data[n_rows - 1, 0, 0]
                seen += [time.monotonic()] * (n_rows - len(seen))
            else:
                time.sleep(0.001)
    channel.send(seen)


def control(rounds: int = 20) -> Table:
    """Measure from `start` to `waiting_for_first_image`, and from the last image to `file_saved`."""
    table = Table(
        "times",
        "Start and end of a run",
        f"528x280, median (min-max) of {rounds} runs, files in memory. Targets with 2 writers: 100 ms and "
        "200 ms.",
        ["writers", "images", "start to waiting_for_first_image ms", "last image to file_saved ms"],
    )
    for n_writers in (1, 2):
        with Rig("b", n_writers) as rig:
            rig.fill_ring(rig.config.n_slots)
            for n_images in (1, 1000):
                rig.clear(n_images * rig.config.image_bytes)
                pairs = [asyncio.run(_start_and_end(rig, n_images)) for _ in range(rounds + 1)][1:]
                table.add(
                    n_writers,
                    n_images,
                    spread([a * 1e3 for a, _ in pairs]),
                    spread([b * 1e3 for _, b in pairs]),
                )
    return table


async def _start_and_end(rig: Rig, n_images: int) -> tuple[float, float]:
    async with AsyncDriverClient(rig.url) as client:
        begin = time.perf_counter()
        await client.start(str(rig.files), n_image=n_images, overwrite=True)
        await client.wait({"waiting_for_first_image"}, timeout=10)
        started = time.perf_counter() - begin
        await asyncio.to_thread(rig.announce, n_images, 2000.0)
        begin = time.perf_counter()
        await client.wait_until_saved(timeout=60)
        return started, time.perf_counter() - begin


def master_file() -> Table:
    """Measure the creation of the master file by number of images and of gaps in their ids."""
    table = Table(
        "master",
        "Creating the master file",
        "Two raw files of 16x16 images, with the given number of gaps in their ids. One virtual mapping "
        "for each writer and each range between gaps.",
        ["images", "gaps", "seconds", "us per gap"],
    )
    for n_images, n_gaps in (
        (1000, 0),
        (100_000, 0),
        (1_000_000, 0),
        (100_000, 10),
        (100_000, 100),
        (100_000, 1000),
        (100_000, 10_000),
    ):
        seconds = _create_master(n_images, n_gaps)
        table.add(n_images, n_gaps, seconds, seconds / n_gaps * 1e6 if n_gaps else "")
    return table


def _create_master(n_images: int, n_gaps: int) -> float:
    ids = np.arange(n_images, dtype=np.uint64)
    ids += (ids * (n_gaps + 1) // n_images).astype(np.uint64)  # Each gap is one missing id.
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        paths = write_raw_files(Path(directory), ids, SHAPES["none"], 2)
        begin = time.perf_counter()
        create_master_file(Path(directory) / "fileMaster.h5", paths)
        return time.perf_counter() - begin
