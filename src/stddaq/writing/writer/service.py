"""`std_det_writer`: the command of one of the parallel writers of images."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from stddaq.config import DetectorConfig
from stddaq.daemon import log
from stddaq.daemon import main as daemon
from stddaq.daemon.arguments import ArgumentParser, writer_number
from stddaq.daemon.metrics import Registry
from stddaq.daemon.replacement import HandedOver
from stddaq.daemon.roots import add_root_option, allowed_roots
from stddaq.writing.writer.image_recorder import ImageRecorder
from stddaq.writing.writer.loop import WriterLoop

NAME = "std_det_writer"


def main(argv: Sequence[str] | None = None) -> int:
    """The command `std_det_writer`."""
    parser = ArgumentParser(NAME, "Write images from the ring buffer to an HDF5 file, as the driver says.")
    parser.add_config()
    parser.add_argument("writer_id", type=writer_number, help="number of this writer, from 0")
    parser.add_source_suffix('suffix of the ring buffer (default "image")')
    add_root_option(parser)
    return daemon.run(parser, _serve, argv)


def _serve(config: DetectorConfig, args: argparse.Namespace, stop: daemon.StopRequest) -> HandedOver | None:
    if args.writer_id >= config.number_of_writers:
        log.event(
            "writer %d is not needed: number_of_writers is %d", args.writer_id, config.number_of_writers
        )
        return None
    roots = allowed_roots(config, args)
    recorder = ImageRecorder(config, args.source_suffix, args.writer_id, roots)
    try:
        registry = Registry(config.detector_name, NAME, str(args.writer_id))
        loop = WriterLoop(config, args.writer_id, recorder, registry, roots)
        log.ready("writer %d of %s", args.writer_id, config.detector_name)
        return loop.serve(stop)
    finally:
        recorder.detach()
