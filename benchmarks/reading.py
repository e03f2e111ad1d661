"""Open and read runs by `stddaq.open_run`, compared with bare loops and with HDF5's own ways.

Files are in memory, so nothing waits for a disk.
"""

from __future__ import annotations

import functools
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
from recorded import write_raw_files
from rig import MEMORY
from tables import Table, spread

from stddaq import open_run
from stddaq.daemon.isolation import run_in_process
from stddaq.files.master_file import create_master_file
from stddaq.files.raw_file import EPOCHS_DTYPE, METADATA_DTYPE

BLOCK = 64
N_IMAGES = 512
N_WRITERS = 4
SHAPE = (512, 512)
ROUNDS = 7
TIMEOUT_S = 120.0
BARE = "bare `preadv`"
BARE_SINGLE = "bare `preadv`, one image after the other"
SINGLE = "`open_run`, one image after the other"


def opening(rounds: int = ROUNDS) -> Table:
    """Measure the opening of a run of 10^6 images in 16 files."""
    table = Table(
        "opening",
        "Opening a run of 10^6 images in 16 files",
        f"`open_run` of the directory and of the master file: time and CPU, median (min-max) of {rounds} "
        "rounds. Bare is the reading of `metadata` of all files by h5py. Target for the CPU: 50 ms.",
        ["by", "bare CPU ms", "CPU ms", "time ms"],
    )
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        directory = Path(name)
        paths = _write_rows(directory)
        master = create_master_file(directory / "fileMaster.h5", paths).path
        for by, path in (("raw files", directory), ("master file", master)):
            measure = functools.partial(_open, path, paths, rounds)
            bare, found = run_in_process(measure, TIMEOUT_S, by)
            table.add(
                by,
                spread([1e3 * spent for spent in bare]),
                spread([1e3 * spent for spent, _ in found]),
                spread([1e3 * elapsed for _, elapsed in found]),
            )
    return table


def _open(path: Path, raw_files: list[Path], rounds: int) -> tuple[list[float], list[tuple[float, float]]]:
    """Return the CPU seconds of bare reading, and CPU and elapsed seconds of `open_run`.

    For a new process: one with less free memory of its own touches more new pages.
    """
    bare, found = list[float](), list[tuple[float, float]]()
    for _ in range(rounds):
        bare.append(_spent(lambda: _read_rows(raw_files))[0])
        found.append(_spent(lambda: open_run(path)))
    return bare, found


def _write_rows(directory: Path, n_writers: int = 16, n_rows: int = 62_500) -> list[Path]:
    """Write raw files with images of 16 pixels, whose pixels were never written."""
    paths = []
    for writer in range(n_writers):
        paths.append(directory / f"file{writer}.h5")
        rows = np.ones(n_rows, METADATA_DTYPE)
        rows["image_id"] = np.arange(n_rows) * n_writers + writer
        with h5py.File(paths[-1], "w", libver=("v110", "v110")) as file:
            group = file.create_group("det")
            group.attrs.update(
                {
                    "writer": writer,
                    "number_of_writers": n_writers,
                    "image_division": "image_id",
                    "run_id": "r",
                }
            )
            group.create_dataset("data", (n_rows, 2, 8), "<u2", maxshape=(None, 2, 8), chunks=(4096, 2, 8))
            group.create_dataset("metadata", data=rows, maxshape=(None,), chunks=(4096,))
            group.create_dataset("epochs", (0,), EPOCHS_DTYPE, maxshape=(None,), chunks=(4096,))
    return paths


def _read_rows(paths: list[Path]) -> None:
    for path in paths:
        with h5py.File(path) as file:
            _dataset(file, "det/metadata")[()]


def blocks(rounds: int = ROUNDS) -> Table:
    """Measure the reading of blocks of images of several writers."""
    image_bytes = 2 * SHAPE[0] * SHAPE[1]
    table = Table(
        "reading",
        f"Reading blocks of {BLOCK} images",
        f"{SHAPE[0]}x{SHAPE[1]} uint16 of {N_WRITERS} writers, in turn: median of {8 * rounds} blocks. Bare "
        "is one `preadv` for each chunk, whose places are known, into fresh memory. One image after the "
        "other, each is released before the next is read, and compared with the bare reading of single "
        "images. Targets: 0.9 for `open_run`, 0.3 for a block by h5py from the master file.",
        ["by", "GB/s", "of bare"],
    )
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        directory = Path(name)
        paths = write_raw_files(directory, range(N_IMAGES), SHAPE, N_WRITERS)
        create_master_file(directory / "fileMaster.h5", paths)
        measure = functools.partial(_read, directory, paths, rounds)
        times = run_in_process(measure, TIMEOUT_S, "reading")
        for way, found in times.items():
            reference = times[BARE_SINGLE if way == SINGLE else BARE]
            table.add(
                way,
                BLOCK * image_bytes / statistics.median(found) / 1e9,
                statistics.median(bare / own for bare, own in zip(reference, found, strict=True)),
            )
    return table


def _read(directory: Path, paths: list[Path], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each block, by the way of reading. For a new process, like `_open`."""
    run, bare = open_run(directory), _Bare(paths, 2 * SHAPE[0] * SHAPE[1])
    with h5py.File(directory / "fileMaster.h5") as file:
        virtual = _dataset(file, "/entry/data/data")
        ways: dict[str, Callable[[int], object]] = {
            BARE: bare.read,
            "`open_run`": lambda start: run.images[start : start + BLOCK],
            BARE_SINGLE: lambda start: _one_after_the_other(bare.read_one, start),
            SINGLE: lambda start: _one_after_the_other(run.images.__getitem__, start),
            "h5py from the master file": lambda start: virtual[start : start + BLOCK],
        }
        times: dict[str, list[float]] = {way: [] for way in ways}
        # In turn, so that the load of the machine is the same for all.
        for start in [*range(0, N_IMAGES, BLOCK)] * rounds:
            for way, read in ways.items():
                times[way].append(_spent(lambda read=read, start=start: read(start))[1])
    return times


def _one_after_the_other(read: Callable[[int], object], start: int) -> None:
    for i in range(start, start + BLOCK):
        read(i)


class _Bare:
    """The least that reading costs: the places of all chunks are known, one `preadv` for each chunk."""

    def __init__(self, paths: list[Path], image_bytes: int) -> None:
        self._files, self._image_bytes, self._n = [], image_bytes, len(paths)
        for path in paths:
            with h5py.File(path) as file:
                data = _dataset(file, "bench/data")
                n = data.chunks[0] if data.chunks else 1
                places = [data.id.get_chunk_info(i).byte_offset for i in range(data.id.get_num_chunks())]
            self._files.append((os.open(path, os.O_RDONLY), n, places))

    def read(self, start: int) -> np.ndarray:
        # A fresh array, as from any other way: the kernel clears its pages.
        out = np.empty(BLOCK * self._image_bytes, np.uint8)
        flat, size = out.data, self._image_bytes
        for writer, (fd, n, places) in enumerate(self._files):
            first = -(-(start - writer) // self._n)
            row, last = first, first + len(range(first * self._n + writer - start, BLOCK, self._n))
            while row < last:
                stop = min(last, (row // n + 1) * n)
                targets = [(i * self._n + writer - start) * size for i in range(row, stop)]
                os.preadv(fd, [flat[to : to + size] for to in targets], places[row // n] + row % n * size)
                row = stop
        return out

    def read_one(self, image: int) -> np.ndarray:
        out = np.empty(self._image_bytes, np.uint8)
        row, writer = divmod(image, self._n)
        fd, n, places = self._files[writer]
        os.preadv(fd, [out.data], places[row // n] + row % n * self._image_bytes)
        return out


def _dataset(file: h5py.File, name: str) -> h5py.Dataset:
    found = file[name]
    assert isinstance(found, h5py.Dataset)
    return found


def _spent(call: Callable[[], object]) -> tuple[float, float]:
    """Return CPU and elapsed seconds of a call."""
    begin, begin_cpu = time.perf_counter(), time.process_time()
    call()
    return time.process_time() - begin_cpu, time.perf_counter() - begin
