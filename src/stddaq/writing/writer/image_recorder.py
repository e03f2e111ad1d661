"""The recorder of images: pixels go from the ring buffer to the raw file, copied once, by the kernel.

The path of an image: a check that the slot holds it, `pwritev` together with the images that came with it,
the same check again, and a row in the metadata. An image that was overwritten keeps its row, without pixels.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stddaq import __version__
from stddaq.config import DetectorConfig
from stddaq.daemon import log, metrics
from stddaq.daemon.metrics import Registry
from stddaq.daemon.statistics import Period, log_statistics
from stddaq.dataplane.metadata import ID_MISSMATCH, ImageMetadata
from stddaq.dataplane.ring_reader import HeldImages, RingReader
from stddaq.errors import StdDaqError
from stddaq.files.compressed_chunks import prepare_chunks
from stddaq.files.raw_file import RawFile, RawLayout
from stddaq.new_file import FileLostError
from stddaq.wire.pixel_checksum import NO_CHECKSUM
from stddaq.wire.std_daq import writer_action_pb2 as pb
from stddaq.writing.writer.recorder import Recorder, RecordImages

# Fewer large images are written together, so that flushing and stopping need not wait.
BATCH_IMAGES = 256
BATCH_BYTES = 32 * 2**20
# After this time without an image a writer has caught up: the lag that it had is no longer shown.
LAG_SHOWN_S = 2.0
DIVISIONS = {pb.by_image_id: "image_id", pb.by_arrival: "arrival"}


@dataclass(slots=True)
class _Batch:
    """Images whose pixels are in the file, from `first_row` on, but not declared yet.

    Columns, because each look-up in a message takes 0.1 us: of each image its metadata, id, sequence number
    and the restarts before it.
    """

    metadata: Sequence[ImageMetadata]
    ids: list[int]
    sequences: Sequence[int]
    restarts: Sequence[int]
    first_row: int
    blank_rows: Collection[int] = ()
    """Offsets from `first_row` of images that were overwritten before the copy: their pixels are zero."""
    unreadable: dict[int, str] = field(default_factory=dict)
    """Offsets of compressed images that HDF5 could not read, and why. The slot may have been overwritten."""

    @classmethod
    def of(cls, images: RecordImages, first_row: int) -> _Batch:
        """Return the images that are to be put into the file from `first_row` on."""
        metadata = [image.image_metadata for image in images]
        return cls(
            metadata,
            [image.image_id for image in metadata],
            [image.sequence for image in metadata],
            [image.restarts for image in images],
            first_row,
        )


@dataclass(slots=True)
class _Account:
    """What became of the images of one run."""

    overwritten_ids: list[int] = field(default_factory=list)
    failed_ids: list[int] = field(default_factory=list)
    epochs: list[tuple[int, int]] = field(default_factory=list)
    """(first row, number of restarts before it) of each epoch but the first."""
    n_restarts: int = 0
    n_visible: int = 0
    failure: str = ""
    is_lost: bool = False
    """The file is no longer at its path: none of its images counts."""

    def progress(self, reported: tuple[int, int]) -> pb.WriterProgress:
        """The message for the driver, without the `reported` numbers of overwritten and failed ids."""
        n_overwritten, n_failed = reported
        return pb.WriterProgress(
            n_written=self.n_visible,
            n_overwritten=len(self.overwritten_ids),
            n_failed=len(self.failed_ids),
            overwritten_ids=self.overwritten_ids[n_overwritten:],
            failed_ids=self.failed_ids[n_failed:],
            failure=self.failure,
        )


class ImageRecorder(Recorder):
    """Records the images of one writer from the ring buffer into its raw file.

    Attributes:
        n_written, n_overwritten, n_failed: images since the start of the service.
        write_time: seconds that writing has taken since then.
        longest_write: longest time per image of a batch in this statistics period, in seconds.
        lag: images by which the source was ahead when the last batch was written; 0 without cursor.
    """

    def __init__(
        self, config: DetectorConfig, suffix: str, writer_id: int, roots: Sequence[Path] = ()
    ) -> None:
        """Attach to the ring buffer. Files are made below `roots`, if any. Raises `GeometryError`."""
        self._roots = roots
        self._config, self._suffix, self._writer_id = config, suffix, writer_id
        self.batch_limit = min(BATCH_IMAGES, max(1, BATCH_BYTES // config.image_bytes))
        self._reader = RingReader(config, suffix)
        self._layout = RawLayout.of(config, suffix)
        prepare_chunks(self._reader.rules.compression, config.image_bytes, config.dtype.itemsize)
        self._held = HeldImages[_Batch](self._reader)
        self._source_has_cursor = True
        self._file: RawFile | None = None
        self._account = _Account()
        self.n_written = self.n_overwritten = self.n_failed = 0
        self.write_time = self.longest_write = self._longest_write_before = 0.0
        self.lag = 0
        self._lag_at = 0.0
        # Overwritten and failed images of the run in the last line that reports them.
        self._n_reported = 0

    def prepare(self) -> None:
        self._reader.refresh()

    def open(self, action: pb.CreateWriterFile) -> None:
        self._account = _Account()
        self._held.drop()
        attributes = file_attributes(self._config, self._suffix, action) | {"writer": self._writer_id}
        self._file = RawFile.create(
            Path(action.path),
            self._layout,
            attributes,
            expected_images=action.expected_images,
            overwrite=action.overwrite,
            roots=self._roots,
        )
        self._reader.watch_source()

    def record(self, images: RecordImages) -> None:
        file = self._file
        if file is None:
            return
        begin = time.perf_counter()
        batch = _Batch.of(images, file.n_images)
        fits = list(map(self._reader.rules.accepts, batch.metadata))
        if not all(fits):
            self._refuse([image for image, is_fit in zip(batch.metadata, fits, strict=True) if not is_fit])
            batch = _Batch.of([*itertools.compress(images, fits)], file.n_images)
        if self._account.failure or not batch.ids:
            self._fail_images(batch.ids)
            return
        try:
            self._copy(file, batch)
        except (OSError, RuntimeError, StdDaqError) as error:  # HDF5 raises RuntimeError, too.
            self._fail(file, batch.ids, error)
            return
        self._declare_judged()
        seconds = time.perf_counter() - begin
        self.n_written += len(batch.ids)
        self.write_time += seconds
        self.longest_write = max(self.longest_write, seconds / len(batch.ids))
        if self._source_has_cursor:
            self.lag = self._reader.ring.sequence - batch.sequences[-1]
            self._lag_at = begin + seconds

    def _refuse(self, images: Sequence[ImageMetadata]) -> None:
        self._fail_images([image.image_id for image in images])
        self._reader.refuse(images[-1])

    def _copy(self, file: RawFile, batch: _Batch) -> None:
        """Put the images into the file, and hold them until their verdict is known."""
        reader, ring = self._reader, self._reader.ring
        self._source_has_cursor = reader.has_cursor_for_all(batch.sequences)
        if self._source_has_cursor:
            self._put(file, batch, ring.held(batch.ids, batch.sequences))
            overwritten = [not is_held for is_held in ring.held(batch.ids, batch.sequences)]
            if reader.is_certain(batch.metadata[0]):
                self._held.read_until = float("inf")
                self._held.add_judged(batch, overwritten)
                return
            copied_at = time.monotonic()
        else:
            self._put(file, batch, list(map(reader.is_there, batch.metadata)))
            copied_at = time.monotonic()
            ring.check_not_replaced()
            overwritten = [
                reader.has_cursor_for(image) and not reader.holds(image) for image in batch.metadata
            ]
        self._held.add(batch, batch.metadata, copied_at, overwritten)
        self._held.read_until = float("-inf")

    def _put(self, file: RawFile, batch: _Batch, are_there: Sequence[bool]) -> None:
        """Put the images into the file; those that are not there, because they are overwritten, as blanks."""
        ring, compression = self._reader.ring, self._reader.rules.compression
        sizes, uncompressed = itertools.repeat(self._config.image_bytes), set[int]()
        if compression:
            sizes = [image.size for image in batch.metadata]
            uncompressed = {
                row for row, image in enumerate(batch.metadata) if image.compression != compression
            }
        if not all(are_there):
            batch.blank_rows = {row for row, is_there in enumerate(are_there) if not is_there}
        memory = ring.memory
        places = zip(ring.offsets(batch.ids), sizes, are_there, strict=False)
        slots = [memory[start : start + size] if is_there else None for start, size, is_there in places]
        batch.unreadable = file.put(slots, uncompressed)

    def _declare_judged(self) -> None:
        """Declare, in order, the images whose verdict is known by now."""
        file = self._file
        if file is None or not self._held:
            return
        # An image that was put as a blank stays overwritten, whatever its slot holds now.
        for batch, verdict in self._held.release():
            overwritten = {*itertools.compress(range(len(batch.ids)), verdict), *batch.blank_rows}
            try:
                self._blank(file, batch, overwritten)
            except (OSError, RuntimeError) as error:
                self._fail_images(batch.ids)
                self._fail(file, [], error)
                return
            row = min(batch.unreadable.keys() - overwritten, default=len(batch.ids))
            self._declare(file, batch, row, overwritten)
            if row < len(batch.ids):
                error = StdDaqError(f"image {batch.ids[row]}: {batch.unreadable[row]}")
                self._fail(file, batch.ids[row:], error)
                return

    @staticmethod
    def _blank(file: RawFile, batch: _Batch, overwritten: Collection[int]) -> None:
        """Remove the pixels of images whose slots were, or may have been, reused during the copy."""
        for row in overwritten:
            if row not in batch.blank_rows and row not in batch.unreadable:
                file.blank(batch.first_row + row)

    def _declare(self, file: RawFile, batch: _Batch, n_rows: int, overwritten: Collection[int]) -> None:
        """Declare the first `n_rows` images of the batch."""
        account = self._account
        columns: list[list[int]] = [batch.ids, [image.status for image in batch.metadata]]
        if self._config.image_checksums:
            columns.append([image.checksum for image in batch.metadata])
        rows: list[tuple[int, ...]] = list(zip(*columns, strict=True))[:n_rows]
        for row in sorted(overwritten):
            if row < n_rows:
                rows[row] = (batch.ids[row], ID_MISSMATCH, NO_CHECKSUM)[: len(columns)]
                account.overwritten_ids.append(batch.ids[row])
                self.n_overwritten += 1
        if batch.restarts.count(account.n_restarts) < len(batch.restarts):
            for row, restarts in enumerate(batch.restarts[:n_rows]):
                if restarts != account.n_restarts:
                    account.n_restarts = restarts
                    account.epochs.append((batch.first_row + row, restarts))
        file.declare(rows)

    def caught_up(self, until: float) -> None:
        self._held.read_until = until

    def settle(self) -> None:
        self._held.read_until = float("inf")
        while self._held:
            time.sleep(self._held.due_in)
            self._declare_judged()

    def flush(self) -> bool:
        if self._file is None:
            return False
        self._declare_judged()
        if self._account.is_lost:
            return False
        try:
            self._file.flush()
        except (OSError, RuntimeError) as error:
            self._account.failure = self._account.failure or f"{self._file.path}: {error}"
            log.logger.error("flushing failed: %s", error)
            self._give_up(self._file)
        self._account.n_visible = self._file.n_visible
        # A source with cursor attaches to a new ring within a second. One without continues with the old one.
        if self._source_has_cursor and not self._held:
            self._reader.refresh()
            self._reader.watch_source()
        return bool(self._held)

    def show_alive(self) -> bool:
        if self._file is None or self._account.is_lost:
            return True
        try:
            self._file.show_alive()
        except FileLostError as error:
            self._lose(self._file, error)
            return False
        except OSError as error:
            log.logger.warning("%s", error)
        return True

    def _lose(self, file: RawFile, error: FileLostError) -> None:
        """Stop writing a file that has lost its path: the driver counts all its images as failed."""
        account = self._account
        account.failure, account.is_lost = account.failure or str(error), True
        log.logger.error("writing failed: %s", error)
        self._give_up(file)
        account.n_visible = 0
        account.overwritten_ids.clear()

    def _fail(self, file: RawFile, ids: Sequence[int], error: Exception) -> None:
        """Stop writing. Images declared before are still made visible, if that is possible."""
        self._account.failure = f"{file.path}: {getattr(error, 'strerror', None) or error}"
        log.logger.error("writing failed: %s", self._account.failure)
        file.drop_undeclared()
        self._fail_held()
        self._fail_images(ids)
        self.flush()

    def _give_up(self, file: RawFile) -> None:
        """Count the images that could not be made visible as failed, even those counted as overwritten."""
        failed = set(file.drop_declared())
        account = self._account
        self.n_failed += len(failed)
        account.failed_ids.extend(failed)
        account.overwritten_ids = [i for i in account.overwritten_ids if i not in failed]
        self._fail_held()

    def _fail_held(self) -> None:
        for batch in self._held.drop():
            self._fail_images(batch.ids)

    def _fail_images(self, ids: Sequence[int]) -> None:
        self.n_failed += len(ids)
        self._account.failed_ids.extend(ids)

    def close(self, *, discard_if_empty: bool = False) -> None:
        if self._file is None:
            return
        self.settle()
        file, self._file = self._file, None
        account = self._account
        self._reader.published_ids.ignore()
        try:
            file.close(account.epochs, discard_if_empty=discard_if_empty)
        except FileLostError as error:
            if not account.is_lost:
                self._lose(file, error)
            raise
        except (OSError, RuntimeError) as error:
            self._give_up(file)
            file.abandon()
            account.failure = account.failure or f"{file.path}: {error}"
            raise OSError(f"{account.failure}; {account.n_visible} images are readable") from error
        account.n_visible = file.n_visible

    def progress(self, reported: tuple[int, int] = (0, 0)) -> pb.WriterProgress:
        return self._account.progress(reported)

    def register(self, registry: Registry) -> None:
        source = self._suffix
        registry.add(metrics.IMAGES_WRITTEN, lambda: self.n_written, source=source)
        registry.add(
            metrics.IMAGE_BYTES_WRITTEN, lambda: self.n_written * self._config.image_bytes, source=source
        )
        registry.add(metrics.IMAGES_OVERWRITTEN, lambda: self.n_overwritten, source=source)
        registry.add(metrics.IMAGES_FAILED, lambda: self.n_failed, source=source)
        registry.add(metrics.RING_LAG_IMAGES, self._shown_lag)
        registry.add(metrics.RING_LAG_RATIO, lambda: self._shown_lag() / self._config.n_slots)
        registry.add(metrics.IMAGE_WRITE_SECONDS, lambda: self.write_time)
        registry.add(
            metrics.IMAGE_WRITE_LONGEST_SECONDS, lambda: max(self.longest_write, self._longest_write_before)
        )

    def _shown_lag(self) -> int:
        return self.lag if time.perf_counter() - self._lag_at < LAG_SHOWN_S else 0

    def statistics(self, period: Period) -> dict[str, object]:
        n, seconds = period.count(metrics.IMAGES_WRITTEN), period.count(metrics.IMAGE_WRITE_SECONDS)
        mib = period.count(metrics.IMAGE_BYTES_WRITTEN) / 2**20
        return {
            "source": self._suffix,
            "id": self._writer_id,
            "n_written_images": n,
            "avg_buffer_write_us": round(seconds / n * 1e6) if n else 0,
            "max_buffer_write_us": round(self.longest_write * 1e6),
            "avg_throughput": mib / seconds if seconds else 0.0,
        }

    def end_period(self) -> None:
        # Announcements must not pile up while no image arrives here.
        if self._file is None:
            self._reader.published_ids.discard()
        elif not self._held:
            self._reader.watch_source()
        self._longest_write_before, self.longest_write = self.longest_write, 0.0
        n_overwritten, n_failed = len(self._account.overwritten_ids), len(self._account.failed_ids)
        if n_overwritten + n_failed != self._n_reported:
            self._n_reported = n_overwritten + n_failed
            log_statistics(
                self._config.detector_name,
                {
                    "source": self._suffix,
                    "id": self._writer_id,
                    "n_overwritten_images": n_overwritten,
                    "n_failed_images": n_failed,
                },
            )
        self._reader.log_refusal()

    def detach(self) -> None:
        """Detach from the ring buffer and disconnect from the source."""
        self._reader.close()


def file_attributes(config: DetectorConfig, suffix: str, action: pb.CreateWriterFile) -> dict[str, object]:
    """Return what every file of a run says of the run, as far as it is known.

    A std_daq driver (C++) sends neither its division of images nor an id of the run.
    """
    found: dict[str, object] = {
        "number_of_writers": action.number_of_writers or config.number_of_writers,
        "source": action.source or suffix,
        "stddaq_version": __version__,
    }
    if action.number_of_writers:
        found["image_division"] = DIVISIONS[action.division]
    if action.run_id:
        found["run_id"] = action.run_id
    return found
