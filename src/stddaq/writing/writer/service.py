"""`std_det_writer`: one of the parallel writers. Pixels go from the ring buffer to the raw file, copied once.

The path of an image: one receive, one parse, a check that the slot holds it, `pwritev` together with the
images that came with it, the same check again, and a row in the metadata.
"""

from __future__ import annotations

import argparse
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stddaq import __version__
from stddaq.config import DetectorConfig
from stddaq.daemon import log, statistics
from stddaq.daemon import main as daemon
from stddaq.daemon.arguments import ArgumentParser, writer_number
from stddaq.dataplane import endpoints
from stddaq.dataplane.metadata import ID_MISSMATCH, ImageMetadata, MetadataRules, ring_suffix
from stddaq.dataplane.published_ids import Announcements
from stddaq.dataplane.ring_buffer import RingBuffer
from stddaq.errors import StdDaqError
from stddaq.files.raw_file import RawFile, RawLayout
from stddaq.wire.std_daq import writer_action_pb2 as pb
from stddaq.writing.writer.loop import RecordImages, WriterLoop

NAME = "std_det_writer"
# Of large images fewer are written at a stretch, so that flushing and stopping need not wait.
BATCH_IMAGES = 256
BATCH_BYTES = 32 * 2**20
DIVISIONS = {pb.by_image_id: "image_id", pb.by_arrival: "arrival"}


@dataclass(slots=True)
class _Batch:
    """Images that are in the file, from `first_row` on, but not declared yet."""

    images: RecordImages
    first_row: int
    is_judged: bool
    """Whether `lost` is final: known from the ring's cursor."""
    lost: list[bool] = field(default_factory=list)
    put_at: float = 0.0

    @property
    def age(self) -> float:
        """Seconds since the images were copied."""
        return time.monotonic() - self.put_at


class ImageRecorder:
    """Records the images of one writer from the ring buffer into its raw file."""

    def __init__(self, config: DetectorConfig, suffix: str, writer_id: int) -> None:
        """Attach to the ring buffer. Raises `GeometryError`."""
        self._config, self._suffix, self._writer_id = config, suffix, writer_id
        stream = endpoints.metadata_stream(config.detector_name, ring_suffix(suffix))
        self.batch_limit = min(BATCH_IMAGES, max(1, BATCH_BYTES // config.image_bytes))
        self._rules = MetadataRules(config, suffix)
        self._ring = RingBuffer(config, suffix)
        self._announcements = Announcements(stream, self._rules, config.n_slots)
        self._source_is_foreign = False
        self._file: RawFile | None = None
        self._begin_account()
        self._n_written = self._n_lost = 0
        self._write_time = self._longest_write = 0.0

    def _begin_account(self) -> None:
        self._undecided: deque[_Batch] = deque()
        self._overwritten_ids: list[int] = []
        self._failed_ids: list[int] = []
        self._passes: list[tuple[int, int]] = []
        self._pass = 0
        self._n_visible = 0
        self._failure = ""
        self._refused: str | None = None

    def prepare(self) -> None:
        """See `Recorder`."""
        if not self._ring.is_current():
            # Somebody removed the segment by hand; the source may have made a new one.
            self._ring.close()
            self._ring = RingBuffer(self._config, self._suffix)

    def open(self, action: pb.CreateWriterFile) -> None:
        """See `Recorder`."""
        self._begin_account()
        attributes = file_attributes(self._config, self._suffix, action) | {"writer": self._writer_id}
        self._file = RawFile(
            Path(action.path),
            RawLayout.of(self._config, self._suffix),
            attributes,
            expected_images=action.expected_images,
            overwrite=action.overwrite,
        )
        if self._source_is_foreign:
            self._announcements.listen()

    def record(self, images: RecordImages) -> None:
        """See `Recorder`."""
        file = self._file
        if file is None:
            return
        images = [image for image in images if self._accepts(image)]
        if self._failure or not images:
            self._failed_ids.extend(image.image_metadata.image_id for image in images)
            return
        begin = time.perf_counter()
        batch = _Batch(images, file.n_images, is_judged=self._can_tell(images))
        try:
            self._put(file, batch)
            if batch.is_judged:
                self._judge(file, batch, self._is_overwritten)
            else:
                self._ring.check_not_replaced()
        except (OSError, RuntimeError, StdDaqError) as error:  # HDF5 fails as RuntimeError, too.
            self._fail(file, images, error)
            return
        self._undecided.append(batch)
        self._decide()
        self._count(len(images), time.perf_counter() - begin)

    def _can_tell(self, images: RecordImages) -> bool:
        """Whether the ring says what its slots hold; if not, hear what its source announces."""
        if self._ring.has_cursor and all(image.image_metadata.sequence for image in images):
            self._source_is_foreign = False
            return True
        self._source_is_foreign = True
        self._announcements.listen()
        for image in images:
            self._announcements.expect(image.image_metadata.image_id)
        return False

    def _accepts(self, image: pb.RecordImage) -> bool:
        if self._rules.accepts(image.image_metadata):
            return True
        self._failed_ids.append(image.image_metadata.image_id)
        self._refused = self._rules.problem(image.image_metadata)
        return False

    def _put(self, file: RawFile, batch: _Batch) -> None:
        """Put the images into the file; those that are known to be overwritten as blanks."""
        compressed, image_bytes = self._rules.compression, self._config.image_bytes
        memory, offset = self._ring.memory, self._ring.offset
        slots: list[memoryview | None] = []
        uncompressed: set[int] = set()
        for row, image in enumerate(batch.images):
            metadata = image.image_metadata
            is_lost = batch.is_judged and self._is_overwritten(metadata)
            batch.lost.append(is_lost)
            start = offset(metadata.image_id)
            size = metadata.size if compressed else image_bytes
            slots.append(None if is_lost else memory[start : start + size])
            if metadata.compression != compressed:
                uncompressed.add(row)
        file.put(slots, uncompressed)
        batch.put_at = time.monotonic()

    def _is_overwritten(self, metadata: ImageMetadata) -> bool:
        return not self._ring.holds(metadata.image_id, metadata.sequence)

    def _judge(self, file: RawFile, batch: _Batch, is_lost: Callable[[ImageMetadata], bool]) -> None:
        """Take the pixels away of images whose slots were, or may have been, written anew during the copy."""
        for row, image in enumerate(batch.images):
            if not batch.lost[row] and is_lost(image.image_metadata):
                batch.lost[row] = True
                file.blank(batch.first_row + row)

    def _decide(self) -> None:
        """Declare, in order, the images about which it is clear by now what they are."""
        file, undecided = self._file, self._undecided
        if file is None or not undecided:
            return
        announcements = self._announcements
        if not undecided[0].is_judged:
            announcements.catch_up()
        while undecided and (undecided[0].is_judged or undecided[0].age >= announcements.hold):
            batch = undecided[0]
            if not batch.is_judged:
                try:
                    self._judge(file, batch, announcements.is_suspect)
                except (OSError, RuntimeError) as error:
                    self._fail(file, [], error)
                    return
            self._declare(file, batch)
            undecided.popleft()

    def settle(self) -> None:
        """See `Recorder`."""
        while self._undecided:
            time.sleep(max(0.0, self._announcements.hold - self._undecided[-1].age))
            self._decide()

    def _declare(self, file: RawFile, batch: _Batch) -> None:
        declare = file.declare
        for row, (image, is_lost) in enumerate(zip(batch.images, batch.lost, strict=True), batch.first_row):
            metadata = image.image_metadata
            if image.restarts != self._pass:
                self._pass = image.restarts
                self._passes.append((row, image.restarts))
            if is_lost:
                self._overwritten_ids.append(metadata.image_id)
                declare(metadata.image_id, ID_MISSMATCH)
            else:
                declare(metadata.image_id, metadata.status)

    def _fail(self, file: RawFile, images: RecordImages, error: Exception) -> None:
        """Stop writing. Images declared before are still made visible, if that is possible."""
        self._failure = f"{file.path}: {getattr(error, 'strerror', None) or error}"
        log.logger.error("writing failed: %s", self._failure)
        file.drop_undeclared()
        self._fail_undecided()
        self._failed_ids.extend(image.image_metadata.image_id for image in images)
        self.flush()

    def _count(self, n_images: int, seconds: float) -> None:
        self._n_written += n_images
        self._write_time += seconds
        self._longest_write = max(self._longest_write, seconds / n_images)

    def flush(self) -> bool:
        """See `Recorder`."""
        if self._file is None:
            return False
        self._decide()
        try:
            self._file.flush()
        except (OSError, RuntimeError) as error:
            self._failure = self._failure or f"{self._file.path}: {error}"
            log.logger.error("flushing failed: %s", error)
            self._give_up(self._file)
        self._n_visible = self._file.n_visible
        return bool(self._undecided)

    def _give_up(self, file: RawFile) -> None:
        """Count the images that could not be made visible as failed, whatever else had happened to them."""
        failed = set(file.drop_declared())
        self._failed_ids.extend(failed)
        self._overwritten_ids = [i for i in self._overwritten_ids if i not in failed]
        self._fail_undecided()

    def _fail_undecided(self) -> None:
        while self._undecided:
            batch = self._undecided.popleft()
            self._failed_ids.extend(image.image_metadata.image_id for image in batch.images)

    def close(self) -> None:
        """See `Recorder`."""
        if self._file is None:
            return
        self.settle()
        file, self._file = self._file, None
        self._announcements.ignore()
        try:
            file.close(self._passes)
        except (OSError, RuntimeError) as error:
            self._give_up(file)
            file.abandon()
            self._failure = self._failure or f"{file.path}: {error}"
            raise OSError(f"{self._failure}; {self._n_visible} images are readable") from error
        self._n_visible = file.n_visible

    def progress(self, told: tuple[int, int] = (0, 0)) -> pb.WriterProgress:
        """See `Recorder`."""
        n_overwritten, n_failed = told
        return pb.WriterProgress(
            n_written=self._n_visible,
            n_overwritten=len(self._overwritten_ids),
            n_failed=len(self._failed_ids),
            overwritten_ids=self._overwritten_ids[n_overwritten:],
            failed_ids=self._failed_ids[n_failed:],
            failure=self._failure,
        )

    def log_statistics(self, elapsed: float) -> None:
        """See `Recorder`."""
        n, seconds = self._n_written, self._write_time
        statistics.log_statistics(
            self._config.detector_name,
            {
                "source": self._suffix,
                "id": self._writer_id,
                "n_written_images": n,
                "avg_buffer_write_us": round(seconds / n * 1e6) if n else 0,
                "max_buffer_write_us": round(self._longest_write * 1e6),
                "avg_throughput": n * self._config.image_bytes / 2**20 / seconds if seconds else 0.0,
            },
        )
        lost = len(self._overwritten_ids) + len(self._failed_ids)
        if lost != self._n_lost:
            self._n_lost = lost
            statistics.log_statistics(
                self._config.detector_name,
                {
                    "source": self._suffix,
                    "id": self._writer_id,
                    "n_overwritten_images": len(self._overwritten_ids),
                    "n_failed_images": len(self._failed_ids),
                },
            )
        if self._refused:
            log.logger.warning("images do not fit the configuration: %s", self._refused)
            self._refused = None
        self._n_written, self._write_time, self._longest_write = 0, 0.0, 0.0

    def detach(self) -> None:
        """Leave the ring buffer and the source."""
        self._announcements.close()
        self._ring.close()


def file_attributes(config: DetectorConfig, suffix: str, action: pb.CreateWriterFile) -> dict[str, object]:
    """What every file of a run says of the run. A driver that does not tell (C++) divides as configured."""
    return {
        "number_of_writers": action.number_of_writers or config.number_of_writers,
        "image_division": DIVISIONS[action.division] if action.number_of_writers else config.image_division,
        "run_id": action.run_id,
        "source": action.source or suffix,
        "stddaq_version": __version__,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """The command `std_det_writer`."""
    parser = ArgumentParser(NAME, "Write images from the ring buffer to an HDF5 file, as the driver says.")
    parser.add_config()
    parser.add_argument("writer_id", type=writer_number, help="number of this writer, from 0")
    parser.add_source_suffix('suffix of the ring buffer (default "image")')
    return daemon.run(parser, _serve, argv)


def _serve(config: DetectorConfig, args: argparse.Namespace, stop: daemon.StopRequest) -> None:
    if args.writer_id >= config.number_of_writers:
        log.event(
            "writer %d is not needed: number_of_writers is %d", args.writer_id, config.number_of_writers
        )
        return
    recorder = ImageRecorder(config, args.source_suffix, args.writer_id)
    try:
        loop = WriterLoop(config, args.writer_id, recorder)
        log.event("ready: writer %d of %s", args.writer_id, config.detector_name)
        loop.serve(stop)
    finally:
        recorder.detach()
