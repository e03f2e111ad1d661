"""`std_det_meta_writer_gf`, `_jf`, `_eg`, `_pco`: write the metadata of all images of a run to its own file.

The commands are one program; only the rows of the file differ by detector type.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from stddaq.config import DetectorConfig
from stddaq.daemon import log, metrics
from stddaq.daemon import main as daemon
from stddaq.daemon.arguments import ArgumentParser
from stddaq.daemon.metrics import Registry
from stddaq.daemon.replacement import HandedOver
from stddaq.daemon.roots import add_root_option, allowed_roots
from stddaq.daemon.statistics import Period
from stddaq.errors import ConfigError
from stddaq.files.metadata_file import EIGER, GIGAFROST, JUNGFRAU, PCO, MetadataFile, MetadataLayout
from stddaq.new_file import FileLostError
from stddaq.text import mismatch
from stddaq.wire.std_daq import writer_action_pb2 as pb
from stddaq.writing.writer.image_recorder import file_attributes
from stddaq.writing.writer.loop import WriterLoop
from stddaq.writing.writer.recorder import Recorder, RecordImages

WRITER = "meta"
# The driver does not send the suffix of its metadata stream to the metadata writer.
SOURCE = "image"


class MetadataRecorder(Recorder):
    """Records the metadata of every image of a run.

    Attributes:
        n_received, n_failed: images since the start of the service.
    """

    batch_limit = 1000

    def __init__(self, config: DetectorConfig, layout: MetadataLayout, roots: Sequence[Path] = ()) -> None:
        """Files are made below `roots` if there are any."""
        self._roots = roots
        self._config, self._layout = config, layout
        self._file: MetadataFile | None = None
        self.n_received = self.n_failed = 0
        self._begin_account()

    def _begin_account(self) -> None:
        self._n_visible = self._n_failed = 0
        self._failure = ""
        self._is_lost = False

    def prepare(self) -> None:
        """Do nothing: only the file needs rights, and the user of the run has them."""

    def open(self, action: pb.CreateWriterFile) -> None:
        self._begin_account()
        self._file = MetadataFile.create(
            Path(action.path),
            self._config.detector_name,
            self._layout,
            file_attributes(self._config, SOURCE, action),
            overwrite=action.overwrite,
            roots=self._roots,
        )

    def record(self, images: RecordImages) -> None:
        if self._file is None:
            return
        if self._failure:
            self._n_failed += len(images)
            self.n_failed += len(images)
            return
        for image in images:
            self._file.add(image.image_metadata)
        self.n_received += len(images)

    def settle(self) -> None:
        """Do nothing: metadata in messages cannot be overwritten."""

    def flush(self) -> bool:
        if self._file is None or self._is_lost:
            return False
        try:
            self._file.flush()
        except (OSError, RuntimeError) as error:
            self._failure = self._failure or f"{self._file.path}: {error}"
            log.logger.error("flushing failed: %s", self._failure)
        self._n_visible = self._file.n_visible
        return False

    def show_alive(self) -> bool:
        if self._file is None or self._is_lost:
            return True
        try:
            self._file.show_alive()
        except FileLostError as error:
            self._lose(error)
            return False
        except OSError as error:
            log.logger.warning("%s", error)
        return True

    def _lose(self, error: FileLostError) -> None:
        log.logger.error("writing failed: %s", error)
        self._failure, self._is_lost = self._failure or str(error), True
        self._n_visible = 0

    def close(self, *, discard_if_empty: bool = False) -> None:
        file, self._file = self._file, None
        if file is None:
            return
        try:
            file.close(discard_if_empty=discard_if_empty)
        except FileLostError as error:
            self._lose(error)
            raise
        except (OSError, RuntimeError) as error:
            file.abandon()
            self._failure = self._failure or f"{file.path}: {error}"
            raise OSError(f"{self._failure}; {self._n_visible} rows are readable") from error
        self._n_visible = file.n_visible

    def progress(self, reported: tuple[int, int] = (0, 0)) -> pb.WriterProgress:
        # Metadata writers count images but keep no list of ids.
        del reported
        return pb.WriterProgress(n_written=self._n_visible, n_failed=self._n_failed, failure=self._failure)

    def register(self, registry: Registry) -> None:
        registry.add(metrics.IMAGES_RECEIVED, lambda: self.n_received, source=SOURCE)
        registry.add(metrics.IMAGES_FAILED, lambda: self.n_failed, source=SOURCE)

    def statistics(self, period: Period) -> dict[str, object]:
        return {"source": SOURCE} | period.rate(metrics.IMAGES_RECEIVED)

    def end_period(self) -> None:
        pass


def main_gf(argv: Sequence[str] | None = None) -> int:
    """The command `std_det_meta_writer_gf`."""
    return _main("gf", "GigaFRoST", ("gigafrost",), GIGAFROST, argv)


def main_jf(argv: Sequence[str] | None = None) -> int:
    """The command `std_det_meta_writer_jf`."""
    return _main("jf", "JUNGFRAU", ("jungfrau-raw", "jungfrau-converted"), JUNGFRAU, argv)


def main_eg(argv: Sequence[str] | None = None) -> int:
    """The command `std_det_meta_writer_eg`."""
    return _main("eg", "EIGER", ("eiger",), EIGER, argv)


def main_pco(argv: Sequence[str] | None = None) -> int:
    """The command `std_det_meta_writer_pco`."""
    return _main("pco", "PCO", ("pco",), PCO, argv)


def _main(
    short: str,
    detector: str,
    detector_types: tuple[str, ...],
    layout: MetadataLayout,
    argv: Sequence[str] | None,
) -> int:
    parser = ArgumentParser(
        f"std_det_meta_writer_{short}",
        f"Write the {detector} metadata of all images of a run to an HDF5 file.",
    )
    parser.add_config()
    add_root_option(parser)

    def serve(
        config: DetectorConfig, args: argparse.Namespace, stop: daemon.StopRequest
    ) -> HandedOver | None:
        if config.detector_type not in detector_types:
            raise ConfigError(
                mismatch(
                    f"{args.detector_json_filename}: detector_type",
                    f"{' or '.join(detector_types)} for {parser.prog}",
                    repr(config.detector_type),
                )
            )
        registry = Registry(config.detector_name, parser.prog)
        roots = allowed_roots(config, args)
        loop = WriterLoop(config, WRITER, MetadataRecorder(config, layout, roots), registry, roots)
        log.ready("metadata writer of %s", config.detector_name)
        return loop.serve(stop)

    return daemon.run(parser, serve, argv)
