"""Throughput of the compressors, compared with the libraries called directly, in GB of pixels per second.

The service receives announcements of simulated images in the ring buffer. The reference is the library
itself, called by the same number of threads of one process on the same images.
"""

from __future__ import annotations

import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zmq
from rig import cpu, detector, end, size_of, start, wait_ready
from tables import Table, spread

from stddaq.config import DetectorConfig
from stddaq.dataplane.connections import open_socket
from stddaq.dataplane.endpoints import metadata_stream
from stddaq.dataplane.image_publisher import ImagePublisher
from stddaq.dataplane.metadata import ImageMetadata
from stddaq.sources.simulated.scenes import Scene
from stddaq.wire.blosc2_chunk import ChunkCompressor
from stddaq.wire.compression import bitshuffle_lz4_bound, compress_bitshuffle_lz4_into

SERVICES = {
    "h5bitshuffle-lz4": "std_data_compress_h5bitshuffle_lz4",
    "blosc2": "std_data_compress_blosc2",
}
ROUNDS = 5
SHAPES = ("a", "b")
THREADS = (1, 2)
# Number of distinct images, which are compressed repeatedly.
RING_BYTES = 400e6
BYTES_PER_ROUND = 0.8e9
TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class _Cost:
    """Elapsed and CPU seconds of a round."""

    wall: float
    cpu: float


def throughput(rounds: int = ROUNDS) -> Table:
    """Measure both compressors with one and two threads."""
    table = Table(
        "compressors",
        "Compressors",
        f"Median (min-max) of {rounds} rounds of {BYTES_PER_ROUND / 1e9:g} GB of simulated pixels, "
        "compared with the library called by as many threads of one process on the same images. "
        "Target for the ratio of GB/s: 0.9.",
        [
            "codec",
            "shape",
            "threads",
            "bare GB/s",
            "service GB/s",
            "service / bare",
            "bare CPU s/GB",
            "service CPU s/GB",
        ],
    )
    for shape in SHAPES:
        with _images(shape) as images:
            for codec in SERVICES:
                for n_threads in THREADS:
                    with images.compressor(codec, n_threads) as service:
                        pairs = [
                            (images.bare(codec, n_threads), service.measure()) for _ in range(rounds + 1)
                        ]
                    _add(table, (codec, size_of(shape), n_threads), images.bytes_per_round / 1e9, pairs[1:])
    return table


def _add(
    table: Table, what: tuple[str, str, int], gigabytes: float, pairs: list[tuple[_Cost, _Cost]]
) -> None:
    table.add(
        *what,
        statistics.median(gigabytes / bare.wall for bare, _ in pairs),
        statistics.median(gigabytes / service.wall for _, service in pairs),
        spread([bare.wall / service.wall for bare, service in pairs]),
        statistics.median(bare.cpu / gigabytes for bare, _ in pairs),
        statistics.median(service.cpu / gigabytes for _, service in pairs),
    )


class _Images:
    """Images in a ring buffer that can be announced repeatedly."""

    def __init__(self, config: DetectorConfig, path: Path, publisher: ImagePublisher) -> None:
        self._config, self._path = config, path
        n_images = max(8, min(config.n_slots, int(RING_BYTES / config.image_bytes)))
        scene = Scene.of(config, "rings")
        self._pixels: list[np.ndarray] = []
        self.messages: list[bytes] = []
        for image_id in range(n_images):
            slot = publisher.begin(image_id)
            scene.write(image_id, slot)
            publisher.commit(image_id)
            self._pixels.append(slot)
            self.messages.append(publisher.metadata.SerializeToString())
        self.n_passes = max(1, round(BYTES_PER_ROUND / config.image_bytes / n_images))
        self.bytes_per_round = self.n_passes * n_images * config.image_bytes
        self.announce = publisher.socket.send

    def bare(self, codec: str, n_threads: int) -> _Cost:
        """Measure the library itself."""
        compress = _library(codec)

        def work(first: int) -> None:
            # The thread that made a result drops it, so that its memory is used for the next one.
            for _ in range(self.n_passes):
                for pixels in self._pixels[first::n_threads]:
                    compress(pixels)

        began, used = time.perf_counter(), time.process_time()
        with ThreadPoolExecutor(n_threads) as pool:
            list(pool.map(work, range(n_threads)))
        return _Cost(time.perf_counter() - began, time.process_time() - used)

    @contextmanager
    def compressor(self, codec: str, n_threads: int) -> Iterator[_Compressor]:
        """Start the service."""
        process = start(SERVICES[codec], self._path, "-t", n_threads)
        try:
            wait_ready(process)
            with _compressor(self, process, metadata_stream(self._config.detector_name, codec)) as compressor:
                yield compressor
        finally:
            end(process)


def _library(codec: str) -> Callable[[np.ndarray], object]:
    """Return the bare codec of the service."""
    if codec == "h5bitshuffle-lz4":
        # Each thread reuses its buffer, because 8 MB of new memory per image would cost more than the codec.
        return lambda pixels: compress_bitshuffle_lz4_into(pixels, _blob_of_thread(pixels))
    return ChunkCompressor(itemsize=2, level=5).compress


_of_thread = threading.local()


def _blob_of_thread(pixels: np.ndarray) -> np.ndarray:
    if getattr(_of_thread, "blob", None) is None:
        _of_thread.blob = np.empty(bitshuffle_lz4_bound(pixels.nbytes, pixels.itemsize), np.uint8)
    return _of_thread.blob


class _Compressor:
    """A running compressor and its output."""

    def __init__(self, images: _Images, process: subprocess.Popen[str], output: zmq.Socket[bytes]) -> None:
        self._images, self._process, self._output = images, process, output

    def measure(self) -> _Cost:
        """Do one round: announce all images at once and wait for them."""
        images = self._images
        began, used = time.perf_counter(), cpu([self._process])
        for _ in range(images.n_passes):
            for message in images.messages:
                images.announce(message)
        for _ in range(images.n_passes * len(images.messages)):
            if not self._output.poll(int(TIMEOUT_S * 1000)):
                raise SystemExit("the compressor does not keep up")
            metadata = ImageMetadata.FromString(self._output.recv())
            assert (metadata.status, metadata.compression > 0) == (1, True)
        return _Cost(time.perf_counter() - began, cpu([self._process]) - used)


@contextmanager
def _compressor(images: _Images, process: subprocess.Popen[str], stream: str) -> Iterator[_Compressor]:
    with zmq.Context() as context:
        output = open_socket(context, zmq.SUB)
        output.subscribe(b"")
        output.connect(stream)
        time.sleep(0.3)  # Wait for the subscriptions at both ends of the service.
        yield _Compressor(images, process, output)
        output.close()


@contextmanager
def _images(shape: str) -> Iterator[_Images]:
    with detector(shape) as path:
        config = DetectorConfig.load(path)
        with ImagePublisher(config) as publisher:
            yield _Images(config, path, publisher)
