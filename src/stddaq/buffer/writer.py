"""`std_buffer_writer`: stores every image, compressed, in files, and announces it in Redis.

It is a processing stage whose output is the image buffer. An image that was overwritten before it was
compressed is counted and not stored.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import ExitStack

import blosc2

from stddaq.buffer.announcer import Announcer
from stddaq.buffer.arguments import BufferArgumentParser, directory_of, open_index
from stddaq.buffer.retention import Retention
from stddaq.buffer.stored_files import StoredFiles
from stddaq.config import DetectorConfig
from stddaq.daemon import log, metrics
from stddaq.daemon import main as daemon
from stddaq.daemon.arguments import NumberRange, thread_count
from stddaq.daemon.metrics import Registry
from stddaq.daemon.statistics import Period
from stddaq.dataplane.image import Image
from stddaq.dataplane.image_subscriber import ImageSubscriber
from stddaq.dataplane.metadata import GOOD_IMAGE, UNDEFINED, ImageMetadata, is_good
from stddaq.errors import ConfigError
from stddaq.processing.outputs import StageOutput
from stddaq.processing.stage import Stage
from stddaq.text import mismatch
from stddaq.wire.blosc2_chunk import ChunkCompressor
from stddaq.wire.compression import MAX_BLOSC2_BYTES
from stddaq.wire.image_buffer import MAX_ID, BufferedMetadata, checksum
from stddaq.wire.std_daq import image_metadata_pb2 as pb

NAME = "std_buffer_writer"
SOURCE = "image"
LEVEL = 5
RETENTION_PERIOD_S = 10.0
# How long a stopped writer announces images that are stored.
CLOSE_TIMEOUT_S = 0.5
MAX_HOURS = 24.0 * 366 * 10


class BufferOutput(StageOutput[tuple[bytes, int]]):
    """The image buffer as the output of a stage. `make` returns the bytes of an image and their checksum."""

    looks_at_pixels = True
    status_of_failed: int | None = UNDEFINED

    def __init__(self, config: DetectorConfig, files: StoredFiles, announcer: Announcer) -> None:
        self.n_slots = config.n_slots
        self._files, self._announcer = files, announcer
        self._compressor = ChunkCompressor(config.dtype.itemsize, LEVEL, blosc2.Codec.BLOSCLZ)
        self._image_bytes = config.image_bytes
        self._n_stored = self._n_stored_bytes = self._n_unwritten = 0
        self._problem = ""

    def make(self, image: Image) -> tuple[bytes, int]:
        chunk = self._compressor.compress(image.pixels)
        return chunk, checksum(chunk)

    def blank(self, image: Image) -> tuple[bytes, int]:
        del image
        return b"", 0

    def publish(self, metadata: ImageMetadata, made: tuple[bytes, int]) -> None:
        chunk, its_checksum = made
        if not chunk:
            return  # The stage has counted it.
        try:
            if metadata.image_id > MAX_ID:
                raise OSError(0, mismatch("image id", f"up to {MAX_ID}", str(metadata.image_id)))
            offset = self._files.append(metadata.image_id, chunk)
        except OSError as error:
            self._n_unwritten += 1
            self._report(f"image {metadata.image_id}: {error.strerror}")
            return
        self._report("")
        self._n_stored += 1
        self._n_stored_bytes += len(chunk)
        if is_good(metadata):
            metadata.status = GOOD_IMAGE
            # It is that of the ring, and means nothing in a file.
            metadata.sequence = 0
        metadata.number = 0
        metadata.compression, metadata.size = pb.blosc2, len(chunk)
        record = BufferedMetadata(metadata=metadata, offset=offset, checksum=its_checksum)
        self._announcer.add(metadata.image_id, record.SerializeToString())

    def _report(self, problem: str) -> None:
        """Log the first of several failures in a row, and their end."""
        if problem and not self._problem:
            log.logger.error("images cannot be stored: %s", problem)
        elif self._problem and not problem:
            log.event("images can be stored again")
        self._problem = problem

    def register(self, registry: Registry) -> None:
        announcer = self._announcer
        registry.add(metrics.IMAGES_WRITTEN, lambda: self._n_stored, source=SOURCE)
        registry.add(metrics.IMAGE_BYTES_WRITTEN, lambda: self._n_stored * self._image_bytes, source=SOURCE)
        registry.add(metrics.COMPRESSED_BYTES, lambda: self._n_stored_bytes)
        registry.add(metrics.IMAGES_ANNOUNCED, lambda: announcer.n_announced)
        registry.add(metrics.IMAGES_WAITING, lambda: announcer.n_waiting)
        registry.add(metrics.IMAGES_REPLACED, lambda: announcer.n_replaced)
        registry.add(metrics.IMAGES_NOT_STORED, lambda: self._n_unwritten, reason="not_written")
        registry.add(metrics.IMAGES_NOT_STORED, lambda: announcer.n_refused, reason="id_exists")
        registry.add(metrics.IMAGES_NOT_STORED, lambda: announcer.n_dropped, reason="not_announced")

    def pairs(self, period: Period) -> dict[str, object]:
        n_bytes = period.count(metrics.COMPRESSED_BYTES)
        return {
            "n_stored_images": period.count(metrics.IMAGES_WRITTEN),
            "n_announced_images": period.count(metrics.IMAGES_ANNOUNCED),
            "n_replaced_images": period.count(metrics.IMAGES_REPLACED),
            "n_not_stored_images": period.count(metrics.IMAGES_NOT_STORED),
            "compression_ratio": period.count(metrics.IMAGE_BYTES_WRITTEN) / n_bytes if n_bytes else 0.0,
        }

    def attend(self) -> None:
        try:
            self._files.check()
        except OSError as error:
            self._report(str(error))

    def close(self) -> None:
        """Announce what is stored, then close the file."""
        self._announcer.close(CLOSE_TIMEOUT_S)
        self._files.close()


def main(argv: Sequence[str] | None = None) -> int:
    """The command `std_buffer_writer`."""
    parser = BufferArgumentParser(NAME, "Store every image, compressed, and announce it in Redis.")
    hours = NumberRange(1 / 3600, MAX_HOURS, "hours")
    parser.add_argument(
        "-t",
        "--timeout",
        type=hours,
        metavar="HOURS",
        help="keys in Redis expire after this time (default: that of --keep, else 1)",
    )
    parser.add_argument(
        "--keep", type=hours, metavar="HOURS", help="remove files that are older (default: none is removed)"
    )
    parser.add_argument(
        "--limit",
        type=NumberRange(1e-6, 1e9, "GB"),
        metavar="GB",
        help="remove the oldest files while all of them together are larger",
    )
    parser.add_argument(
        "--refuse-existing",
        action="store_true",
        help="do not announce an image whose id has one already (default: the newer replaces it)",
    )
    parser.add_argument(
        "--threads",
        type=thread_count,
        default=2,
        metavar="THREADS",
        help="threads that compress (default: 2)",
    )
    return daemon.run(parser, _serve, argv)


def _serve(config: DetectorConfig, args: argparse.Namespace, stop: daemon.StopRequest) -> None:
    if config.image_bytes > MAX_BLOSC2_BYTES:
        raise ConfigError(
            mismatch(
                args.detector_json_filename,
                f"images of up to {MAX_BLOSC2_BYTES} bytes",
                f"{config.image_bytes}",
            )
        )
    expire_hours = args.timeout or args.keep or 1.0
    if args.keep and expire_hours < args.keep:
        raise ConfigError(
            mismatch(
                "--timeout",
                f"{args.keep:g} or more, as --keep",
                f"{expire_hours:g}",
                "images whose keys have expired cannot be found",
            )
        )
    registry = Registry(config.detector_name, NAME)
    with ExitStack() as stack:
        index = stack.enter_context(open_index(args, config.detector_name))
        directory = directory_of(args, config.detector_name)
        files = StoredFiles(directory)
        announcer = Announcer(index, int(expire_hours * 3600), keep_first=args.refuse_existing)
        output = BufferOutput(config, files, announcer)
        retention = Retention(
            index,
            files,
            announcer.waiting_files,
            keep_s=args.keep and args.keep * 3600,
            limit_bytes=args.limit and args.limit * 1e9,
        )
        if args.keep is None and args.limit is None:
            announcer.start()
        else:
            announcer.start(retention.attend, RETENTION_PERIOD_S)
        stack.callback(output.close)
        subscriber = ImageSubscriber(config, SOURCE)
        stack.callback(subscriber.close)
        stage = Stage(config, subscriber, output, args.threads, registry)
        log.ready("%s of %s in %s and %s", SOURCE, config.detector_name, directory, index.address)
        stage.serve(stop)
