"""Read a run by `stddaq.open_run`, beside a bare `preadv` of the same pixels and HDF5's ways, in one run.

    python benchmarks/reading.py [--directory /dev/shm] [--images 2048] [--height 512] [--width 512]

Prints a line for each way: time, and rate in relation to the bare loop. The files come from the page cache.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import h5py
import numpy as np

from stddaq import open_run
from stddaq.files.master_file import create_master_file
from stddaq.files.raw_file import EPOCHS_DTYPE, METADATA_DTYPE, RawFile, RawLayout

BLOCK = 64
REPEATS = 7


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure open_run beside a bare preadv.")
    parser.add_argument("--directory", type=Path, default=Path("/dev/shm"))
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--height", type=int, default=512)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--writers", type=int, default=4)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.directory) as directory:
        measure_open(Path(directory))
    with tempfile.TemporaryDirectory(dir=args.directory) as directory:
        paths = write_run(Path(directory), args.images, (args.height, args.width), args.writers)
        measure_reading(Path(directory), paths)


def measure_open(directory: Path) -> None:
    """Open 10^6 images in 16 files."""
    paths = []
    for writer in range(16):
        paths.append(directory / f"file{writer}.h5")
        rows = np.ones(62500, METADATA_DTYPE)
        rows["image_id"] = np.arange(62500) * 16 + writer
        with h5py.File(paths[-1], "w", libver=("v110", "v110")) as file:
            group = file.create_group("det")
            group.attrs.update(
                {"writer": writer, "number_of_writers": 16, "image_division": "image_id", "run_id": "r"}
            )
            group.create_dataset("data", (62500, 2, 8), "<u2", maxshape=(None, 2, 8), chunks=(4096, 2, 8))
            group.create_dataset("metadata", data=rows, maxshape=(None,), chunks=(4096,))
            group.create_dataset("epochs", (0,), EPOCHS_DTYPE, maxshape=(None,), chunks=(4096,))
    master = create_master_file(directory / "fileMaster.h5", paths).path
    for what, path in (("raw files", directory), ("master file", master)):
        spent = min(times(partial(open_run, path), clock=time.process_time))
        print(f"open 10^6 images in 16 files by {what}: {1e3 * spent:.0f} ms of one processor")


def write_run(directory: Path, n_images: int, shape: tuple[int, int], n_writers: int) -> list[Path]:
    layout, paths = RawLayout("det", shape, np.dtype("<u2"), 16 * 2**20, 0), []
    image = np.random.default_rng(1).integers(0, 4096, shape, "<u2").data.cast("B")
    for writer in range(n_writers):
        attributes = {
            "writer": writer,
            "number_of_writers": n_writers,
            "image_division": "image_id",
            "run_id": "r",
        }
        paths.append(directory / f"file{writer}.h5")
        file = RawFile.create(paths[-1], layout, attributes)
        for image_id in range(writer, n_images, n_writers):
            file.put([image])
            file.declare(image_id, 1)
        file.close()
    create_master_file(directory / "fileMaster.h5", paths)
    return paths


def measure_reading(directory: Path, paths: list[Path]) -> None:
    run = open_run(directory)
    out = np.empty((BLOCK, *run.image_shape), run.dtype)
    bare = Bare(paths, out)
    with h5py.File(directory / "fileMaster.h5") as file:
        virtual = file["/entry/data/data"]
        assert isinstance(virtual, h5py.Dataset)
        ways: dict[str, Callable[[int], object]] = {
            "bare preadv": bare.read,
            "open_run": lambda start: run.images[start : start + BLOCK],
            "open_run, one image": lambda start: [run.images[i] for i in range(start, start + BLOCK)],
            "h5py over the master file": lambda start: virtual[start : start + BLOCK],
        }
        starts = range(0, run.n_images - BLOCK + 1, BLOCK)
        rates: dict[str, list[float]] = {name: [] for name in ways}
        # In turn, so that the load of the machine is the same for all.
        for start in [*starts][:8] * REPEATS:
            for name, way in ways.items():
                rates[name].append(1 / times(partial(way, start), 1)[0])
    for name, found in rates.items():
        speed = statistics.median(found) * out.nbytes / 1e9
        ratio = statistics.median(np.array(found) / np.array(rates["bare preadv"]))
        print(
            f"{BLOCK} images of {out[0].nbytes // 1024} KiB by {name}: {speed:.2f} GB/s, {ratio:.2f} of bare"
        )


class Bare:
    """The least that reading costs: the places of all chunks are known, one `preadv` for each chunk."""

    def __init__(self, paths: list[Path], out: np.ndarray) -> None:
        self._files, self._image_bytes, self._n = [], out[0].nbytes, len(paths)
        for path in paths:
            with h5py.File(path) as file:
                data = file["det/data"]
                assert isinstance(data, h5py.Dataset)
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


def times(
    call: Callable[[], object], repeats: int = REPEATS, clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    found = []
    for _ in range(repeats):
        begin = clock()
        call()
        found.append(clock() - begin)
    return found


if __name__ == "__main__":
    main()
