"""CPU cost of driver and writers, compared with bare loops over the same bytes and messages."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
import zmq
from rig import BARE_BATCH, MEBIBYTE, SHAPES, Measured, Rig, size_of
from tables import Table, spread

from stddaq.dataplane.connections import open_socket
from stddaq.dataplane.ring_buffer import RingBuffer
from stddaq.wire.std_daq import image_metadata_pb2 as pb

# About 40 % of the highest rate of one writer on two shared cores. A run takes less than two seconds, because
# a virtual machine then returns free memory to its host, and getting it back is slow.
RATES_HZ = {"a": 150.0, "b": 4000.0, "c": 8000.0}
BYTES_IN_MEMORY = 1000 * MEBIBYTE
# Few enough that the kernel does not write them to disk during a run, at the cost of a random process.
BYTES_ON_DISK = 400 * MEBIBYTE
ROUNDS = 5
# Rates of a compressed source and images of a run, which also takes less than two seconds.
COMPRESSED_RUNS = ((2000.0, 3000), (8000.0, 8000))


def writing(name: str, directory: Path, where: str, run_bytes: int, rounds: int = ROUNDS) -> Table:
    """Measure CPU per GB of writers and of a bare `pwritev` loop, for three shapes and 1 and 2 writers."""
    table = Table(
        name,
        f"CPU of the writing path, files {where}",
        f"Median (min-max) of {rounds} runs of {run_bytes // MEBIBYTE} MiB, each compared with a bare loop "
        "that writes the same slots of the same ring buffer into the same file system with `pwritev`. "
        "Target for the ratio: 1.2 for a and b, 1.5 for c.",
        [
            "shape",
            "writers",
            "rate Hz",
            "bare s/GB",
            "writers s/GB",
            "ratio",
            "writers us/image",
            "driver us/image",
        ],
    )
    for shape, rate in RATES_HZ.items():
        for n_writers in (1, 2):
            with Rig(shape, n_writers, directory) as rig:
                n_images = run_bytes // rig.config.image_bytes
                rig.fill_ring(n_images)
                pairs = [_beside_bare(rig, n_images, rate) for _ in range(rounds + 1)][1:]
            gigabytes = n_images * rig.config.image_bytes / 1e9
            table.add(
                size_of(shape),
                n_writers,
                rate,
                statistics.median(bare for bare, _ in pairs) / gigabytes,
                statistics.median(run.writers for _, run in pairs) / gigabytes,
                spread([run.writers / bare for bare, run in pairs]),
                statistics.median(run.writers for _, run in pairs) / n_images * 1e6,
                statistics.median(run.driver for _, run in pairs) / n_images * 1e6,
            )
    return table


def _beside_bare(rig: Rig, n_images: int, rate: float) -> tuple[float, Measured]:
    n_bytes = n_images * rig.config.image_bytes
    rig.clear(n_bytes)
    bare, _ = rig.bare_loop(n_images)
    rig.clear(n_bytes)
    run = rig.record(n_images, rate)
    if not run.is_complete:
        raise SystemExit(f"the machine does not keep up with {rate:g} Hz of {rig.shape}: {run.account}")
    return bare, run


def control(rounds: int = ROUNDS) -> Table:
    """Measure the cost of an image with very few pixels: driver, writers, metadata writer."""
    table = Table(
        "control",
        "CPU without pixels (16x16)",
        f"Median of {rounds} runs of a second. Targets: driver 12 us at 20 kHz with 2 writers, writer 15 us,"
        " metadata writer 5 us; 40 kHz without loss. The last column is a bare receive from SUB and send to"
        " PUSH of the same messages in one process.",
        [
            "rate Hz",
            "writers",
            "driver us/image",
            "writer us/image",
            "metadata writer us/image",
            "complete runs",
            "bare receive + send us",
        ],
    )
    bare = bare_forward()
    for rate, n_writers in ((10_000.0, 1), (20_000.0, 1), (20_000.0, 2), (40_000.0, 2)):
        with Rig("none", n_writers, with_meta=True) as rig:
            n_images = int(rate)
            rig.fill_ring(n_images)
            runs = [rig.record(n_images, rate) for _ in range(rounds + 1)][1:]
        table.add(
            rate,
            n_writers,
            statistics.median(run.driver for run in runs) / n_images * 1e6,
            statistics.median(run.writers for run in runs) / n_images * 1e6,
            statistics.median(run.meta for run in runs) / n_images * 1e6,
            f"{sum(run.is_complete for run in runs)} of {rounds}",
            bare,
        )
    return table


def bare_forward(n_messages: int = 200_000) -> float:
    """Return the CPU us per message of a loop that receives metadata from SUB and sends it to PUSH."""
    message = pb.ImageMetadata(
        image_id=10**6, height=16, width=16, size=512, sequence=10**15
    ).SerializeToString()
    with tempfile.TemporaryDirectory(dir="/tmp") as ipc, zmq.Context() as context:
        ends = [f"ipc://{ipc}/{name}" for name in ("in", "out")]
        source, sub = open_socket(context, zmq.XPUB), open_socket(context, zmq.SUB)
        push, pull = open_socket(context, zmq.PUSH), open_socket(context, zmq.PULL)
        source.bind(ends[0])
        push.bind(ends[1])
        sub.subscribe(b"")
        sub.connect(ends[0])
        pull.connect(ends[1])
        source.poll(1000)
        cost = 0.0
        batch = 1000
        for _ in range(n_messages // batch):
            for _ in range(batch):
                source.send(message)
            time.sleep(0.002)
            begin = time.thread_time()
            for _ in range(batch):
                push.send(sub.recv())
            cost += time.thread_time() - begin
            for _ in range(batch):
                pull.recv()
        for socket in (source, sub, push, pull):
            socket.close()
    return cost / n_messages * 1e6


def compressed(rounds: int = ROUNDS) -> Table:
    """Measure a compressed source and a bare loop of HDF5's direct chunk write."""
    suffix, shape = "h5bitshuffle-lz4", "b"
    table = Table(
        "compressed",
        "CPU of a compressed source (h5bitshuffle-lz4, 528x280)",
        f"Median (min-max) of {rounds} runs, compared with a bare loop of `write_direct_chunk` of the same "
        "slots, which never pauses. The higher rate is about 40 % of the loop's, as for the "
        "uncompressed images above. Target for the ratio: 1.3.",
        ["bytes/image", "rate Hz", "images", "bare us/image", "writer us/image", "ratio"],
    )
    blob = _chunk_of(np.random.default_rng(1).poisson(20, SHAPES[shape]).astype(np.uint16))
    with Rig(shape, suffix=suffix) as rig:
        rig.publisher.metadata.size = len(blob)
        rig.publisher.metadata.compression = pb.h5bitshuffle_lz4
        with RingBuffer(rig.config, suffix) as ring:
            for slot in range(rig.config.n_slots):
                ring.slot(slot)[: len(blob)] = blob
        for rate, n_images in COMPRESSED_RUNS:
            pairs = [_beside_direct_chunks(rig, n_images, rate, len(blob)) for _ in range(rounds + 1)][1:]
            table.add(
                len(blob),
                rate,
                n_images,
                statistics.median(bare for bare, _ in pairs) / n_images * 1e6,
                statistics.median(run.writers for _, run in pairs) / n_images * 1e6,
                spread([run.writers / bare for bare, run in pairs]),
            )
    return table


def _beside_direct_chunks(rig: Rig, n_images: int, rate: float, size: int) -> tuple[float, Measured]:
    rig.clear(n_images * size)
    bare = _bare_direct_chunks(rig, n_images, size)
    rig.clear(n_images * size)
    run = rig.record(n_images, rate)
    if not run.is_complete:
        raise SystemExit(f"the machine does not keep up with {rate:g} Hz of {rig.shape}: {run.account}")
    return bare, run


def _chunk_of(pixels: np.ndarray) -> bytes:
    with h5py.File.in_memory() as file:
        data = file.create_dataset(
            "data", data=pixels[None], chunks=(1, *pixels.shape), **hdf5plugin.Bitshuffle(cname="lz4")
        )
        return bytes(data.id.read_direct_chunk((0, 0, 0))[1])


def _bare_direct_chunks(rig: Rig, n_images: int, size: int) -> float:
    path = rig.files / "bare.h5"
    with RingBuffer(rig.config, rig.suffix) as ring, h5py.File(path, "w", libver="latest") as file:
        shape = rig.config.image_shape
        data = file.create_dataset(
            "data",
            (0, *shape),
            "u2",
            maxshape=(None, *shape),
            chunks=(1, *shape),
            **hdf5plugin.Bitshuffle(cname="lz4"),
        )
        begin = time.process_time()
        for first in range(0, n_images, BARE_BATCH):
            last = min(first + BARE_BATCH, n_images)
            data.id.set_extent((last, *shape))
            for i in range(first, last):
                data.id.write_direct_chunk((i, 0, 0), ring.slot(i)[:size])
        elapsed = time.process_time() - begin
    path.unlink()
    return elapsed
