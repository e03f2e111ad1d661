"""`std_gf_filter` forwards the GigaFRoST images that the control system marks to be stored."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from stddaq.config import DetectorConfig
from stddaq.daemon import main as daemon
from stddaq.dataplane.image import Image
from stddaq.errors import ConfigError
from stddaq.processing.outputs import FilterOutput
from stddaq.processing.service import ServiceParser, serve_stage
from stddaq.text import mismatch, shown

NAME = "std_gf_filter"
SUFFIX = "filter"


def main(argv: Sequence[str] | None = None) -> int:
    """The command `std_gf_filter`."""
    parser = ServiceParser(NAME, "Forward the metadata of images whose store_image is set.")
    parser.add_argument("-n", "--no_filter", action="store_true", help="forward all images")
    return daemon.run(parser, _serve, argv)


def _serve(config: DetectorConfig, args: argparse.Namespace, stop: daemon.StopRequest) -> None:
    if config.detector_type != "gigafrost":
        raise ConfigError(
            mismatch(
                f"{args.detector_json_filename}: detector_type",
                f'"gigafrost" for {NAME}',
                shown(config.detector_type),
            )
        )
    keep = _any_image if args.no_filter else _is_to_be_stored
    # The filter reads only metadata, so threads would cost more than they save.
    serve_stage(
        NAME, config, args, stop, lambda: FilterOutput(config, SUFFIX, keep, looks_at_pixels=False), SUFFIX, 0
    )


def _is_to_be_stored(image: Image) -> bool:
    return image.metadata.gf.store_image


def _any_image(image: Image) -> bool:
    del image
    return True
