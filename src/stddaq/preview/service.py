"""`std_preview`: reduces the newest images for the browsers of `stddaq-rest`.

A process of its own, because the one that answers requests neither maps the ring nor is delayed by pixels. It
has low priority, and is the first that the kernel ends when memory runs out: no image is lost without it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import tifffile

from stddaq.config import DetectorConfig
from stddaq.config.modules import gaps, position_mistakes
from stddaq.daemon import log
from stddaq.daemon import main as daemon
from stddaq.daemon.arguments import ArgumentParser, NumberRange
from stddaq.daemon.metrics import Registry
from stddaq.dataplane import endpoints
from stddaq.errors import ConfigError
from stddaq.preview.pictures import Pictures
from stddaq.preview.preview import Preview
from stddaq.text import mismatch

NAME = "std_preview"
NICENESS = 10
_OOM_SCORE = 500


def main(argv: Sequence[str] | None = None) -> int:
    """The command `std_preview`."""
    parser = ArgumentParser(NAME, "Reduce the newest images for the page of stddaq-rest.")
    parser.add_config()
    parser.add_source_suffix('suffix of the metadata stream to show (default "image")')
    parser.add_argument(
        "--hz",
        type=NumberRange(0.1, 100, "images per second"),
        default=10.0,
        metavar="HZ",
        help="most images per second (default 10)",
    )
    parser.add_argument(
        "--saturation",
        type=NumberRange(0, 2**32, "counts"),
        metavar="COUNTS",
        help="lowest value of a saturated pixel (default: the largest of the pixel type)",
    )
    parser.add_argument(
        "--mask",
        type=Path,
        metavar="FILE",
        help="image (.npy or TIFF) of the detector's size; pixels that are not 0 are masked, as gaps are",
    )
    # At low priority, and with clients that never stop sending, the end in order may take any time.
    return daemon.run(parser, _serve, argv, closes_nothing=True)


def _serve(config: DetectorConfig, args: argparse.Namespace, stop: daemon.StopRequest) -> None:
    suffix = args.source_suffix
    _give_way()
    pictures = Pictures(config.image_shape, config.dtype, masked_pixels(config, args.mask), args.saturation)
    registry = Registry(config.detector_name, NAME, endpoints.preview_instance(suffix))
    with closing(Preview(config, suffix, pictures, args.hz, registry)) as preview:
        height, width = pictures.whole.size
        log.ready(
            "%dx%d pixels of %s, at most %g Hz, at %s",
            height,
            width,
            suffix,
            args.hz,
            endpoints.preview(config.detector_name, suffix),
        )
        preview.serve(stop)


def masked_pixels(config: DetectorConfig, mask: Path | None = None) -> np.ndarray | None:
    """Return the pixels that belong to no module or are masked by a file, bool; None if there are none.

    Raise `ConfigError` if the file cannot be used.
    """
    masked = np.zeros(config.image_shape, bool) if mask is None else _mask_of(mask, config.image_shape)
    if config.module_positions and not position_mistakes(config):
        for gap in gaps(config):
            masked[gap.top : gap.bottom, gap.left : gap.right] = True
    return masked if masked.any() else None


def _mask_of(path: Path, shape: tuple[int, int]) -> np.ndarray:
    try:
        content = np.load(path) if path.suffix == ".npy" else tifffile.imread(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--mask {path}: {error}") from error
    if not isinstance(content, np.ndarray) or content.shape != shape:
        found = content.shape if isinstance(content, np.ndarray) else "no image"
        raise ConfigError(mismatch(f"--mask {path}", f"an image of shape {shape}", str(found)))
    return content != 0


def _give_way() -> None:
    """Let every other service of the machine come first."""
    os.nice(NICENESS)
    with contextlib.suppress(OSError):  # Without procfs, as in some containers.
        Path("/proc/self/oom_score_adj").write_text(f"{_OOM_SCORE}\n")
