"""What the compressors make of the machine, beside the libraries called directly: GB of pixels per second.

The service is a real process, fed with announcements of simulated images that lie in the ring buffer. The
limit is the library itself, called in one process by the same number of threads on the same images in the
same run. Figures of shared machines wander: quote the ratios, take the median of several rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import zmq

from stddaq.acquisition.publisher import ImagePublisher
from stddaq.acquisition.scenes import Scene
from stddaq.config import DetectorConfig
from stddaq.wire.compression import bitshuffle_lz4_bound, compress_bitshuffle_lz4_into
from stddaq.wire.endpoints import metadata_stream, open_socket
from stddaq.wire.metadata import ImageMetadata

SERVICES = {
    "h5bitshuffle-lz4": "std_data_compress_h5bitshuffle_lz4",
    "blosc2": "std_data_compress_blosc2",
}
SHAPES = {"a": (2016, 2016), "b": (528, 280), "c": (480, 128)}
# Distinct images, which are compressed again and again.
RING_BYTES = 400e6
BYTES_PER_ROUND = 0.8e9
HEADING = (
    "codec            shape        threads | GB/s: bare  service  ratio (min-max) | CPU s/GB: bare  service"
)
TIMEOUT_S = 60.0
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds that a round took, by the clock and of CPU."""

    wall: float
    cpu: float


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print one line per codec, shape and number of threads."""
    parser = argparse.ArgumentParser(description="Throughput of the compressors, beside the bare libraries.")
    parser.add_argument("--codecs", nargs="+", default=list(SERVICES), choices=SERVICES, help="default all")
    parser.add_argument("--shapes", nargs="+", default=["a"], choices=SHAPES, help="default a")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args(argv)
    print(f"{os.cpu_count()} cores, images of uint16, median (min-max) of {args.rounds} rounds")
    print(HEADING)
    for shape in args.shapes:
        with _images(SHAPES[shape]) as images:
            for codec in args.codecs:
                for n_threads in args.threads:
                    with images.compressor(codec, n_threads) as service:
                        rounds = [
                            (images.bare(codec, n_threads), service.measure()) for _ in range(args.rounds + 1)
                        ]
                    _print(codec, shape, n_threads, images.bytes_per_round / 1e9, rounds[1:])
    return 0


def _print(
    codec: str, shape: str, n_threads: int, gigabytes: float, rounds: Sequence[tuple[Cost, Cost]]
) -> None:
    height, width = SHAPES[shape]
    ratios = [bare.wall / service.wall for bare, service in rounds]
    bare_rate, service_rate = (
        statistics.median(gigabytes / costs[i].wall for costs in rounds) for i in range(2)
    )
    bare_cpu, service_cpu = (
        statistics.median(costs[i].cpu / gigabytes for costs in rounds) for i in range(2)
    )
    print(
        f"{codec:<16} {shape} {height:>4}x{width:<4} {n_threads:>8} | {bare_rate:>10.2f} {service_rate:>8.2f}"
        f" {statistics.median(ratios):>6.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        f" | {bare_cpu:>14.3f} {service_cpu:>8.3f}",
        flush=True,
    )


class Images:
    """Images in a ring buffer, announced as often as one likes."""

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

    def bare(self, codec: str, n_threads: int) -> Cost:
        """The library itself."""
        compress = _library(codec)

        def work(first: int) -> None:
            # A result is dropped by the thread that made it: its memory is then used for the next.
            for _ in range(self.n_passes):
                for pixels in self._pixels[first::n_threads]:
                    compress(pixels)

        began, cpu = time.perf_counter(), time.process_time()
        with ThreadPoolExecutor(n_threads) as pool:
            list(pool.map(work, range(n_threads)))
        return Cost(time.perf_counter() - began, time.process_time() - cpu)

    @contextmanager
    def compressor(self, codec: str, n_threads: int) -> Iterator[Compressor]:
        """The service, started."""
        process = subprocess.Popen(
            [Path(sys.executable).with_name(SERVICES[codec]), str(self._path), "-t", str(n_threads)],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout is not None
            assert any("ready" in line for line in process.stdout)
            yield Compressor(self, process, metadata_stream(self._config.detector_name, codec))
        finally:
            process.terminate()
            process.communicate(timeout=10)


def _library(codec: str) -> Callable[[np.ndarray], object]:
    """The codec that the service uses, with nothing around it."""
    if codec == "h5bitshuffle-lz4":
        # One buffer for each thread: getting 8 MB of fresh memory for each image costs more than the codec.
        return lambda pixels: compress_bitshuffle_lz4_into(pixels, _blob_of_thread(pixels))
    blosc2.set_releasegil(True)
    parameters: Any = blosc2.CParams(
        codec=blosc2.Codec.BLOSCLZ, clevel=5, typesize=2, filters=[blosc2.Filter.SHUFFLE], nthreads=1
    )
    return lambda pixels: blosc2.compress2(pixels, cparams=parameters)


_of_thread = threading.local()


def _blob_of_thread(pixels: np.ndarray) -> np.ndarray:
    if getattr(_of_thread, "blob", None) is None:
        _of_thread.blob = np.empty(bitshuffle_lz4_bound(pixels.nbytes, pixels.itemsize), np.uint8)
    return _of_thread.blob


class Compressor:
    """A compressor that runs, and its output."""

    def __init__(self, images: Images, process: subprocess.Popen[str], stream: str) -> None:
        self._images, self._process = images, process
        self._context = zmq.Context.instance()
        self._output = open_socket(self._context, zmq.SUB)
        self._output.subscribe(b"")
        self._output.connect(stream)
        time.sleep(0.3)  # Both ends of the stage are subscribed then.

    def measure(self) -> Cost:
        """One round: all images announced at once, and waited for."""
        images = self._images
        began, cpu = time.perf_counter(), self._cpu()
        for _ in range(images.n_passes):
            for message in images.messages:
                images.announce(message)
        for _ in range(images.n_passes * len(images.messages)):
            assert self._output.poll(int(TIMEOUT_S * 1000)), "the compressor does not keep up"
            metadata = ImageMetadata.FromString(self._output.recv())
            assert (metadata.status, metadata.compression > 0) == (1, True)
        return Cost(time.perf_counter() - began, self._cpu() - cpu)

    def _cpu(self) -> float:
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS


@contextmanager
def _images(shape: tuple[int, int]) -> Iterator[Images]:
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sd-", dir="/tmp")))
        os.environ["STDDAQ_IPC_DIR"] = str(directory)
        content = {
            "detector_name": f"bench{os.getpid()}",
            "detector_type": "gigafrost",
            "n_modules": 1,
            "bit_depth": 16,
            "image_pixel_height": shape[0],
            "image_pixel_width": shape[1],
            "start_udp_port": 2000,
            "module_positions": {},
        }
        path = directory / "config.json"
        path.write_text(json.dumps(content))
        config = DetectorConfig.load(path)
        yield Images(config, path, stack.enter_context(ImagePublisher(config)))


if __name__ == "__main__":
    raise SystemExit(main())
