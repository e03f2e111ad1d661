"""Services as a user could write them: `python user_services.py ROLE CONFIG ...`.

`negate` publishes inverted images; it fails in scan 13, and `--pause` slows it down. `bright` forwards images
whose first pixel is at least 100. `halve` publishes images of half the height and width.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import numpy as np

from stddaq.config import DetectorConfig
from stddaq.errors import ConfigError
from stddaq.processing import Image, ServiceParser, run_filter, run_processor


def prepare_negate(config: DetectorConfig, args: argparse.Namespace) -> Callable[[Image, np.ndarray], None]:
    if args.pause < 0:
        raise ConfigError(f"--pause: found {args.pause}, allowed is 0 and more")

    def negate(image: Image, pixels: np.ndarray) -> None:
        assert not image.pixels.flags.writeable
        assert image.pixels.shape == config.image_shape
        assert bytes(image.content) == image.pixels.tobytes()
        if image.metadata.gf.scan_id == 13:
            raise ValueError("scan 13")
        np.invert(image.pixels, out=pixels)
        if args.pause >= 1:
            print("pausing", flush=True)
        time.sleep(args.pause)

    return negate


def prepare_bright(config: DetectorConfig, args: argparse.Namespace) -> Callable[[Image], bool]:
    del config, args
    return lambda image: bool(image.pixels[0, 0] >= 100)


def prepare_halve(config: DetectorConfig, args: argparse.Namespace) -> Callable[[Image, np.ndarray], None]:
    del config, args

    def halve(image: Image, pixels: np.ndarray) -> None:
        pixels[:] = image.pixels[::2, ::2]

    return halve


def main(argv: list[str]) -> int:
    role, *arguments = argv
    parser = ServiceParser(role, "A service of the tests.")
    parser.add_threads()
    if role == "bright":
        return run_filter(parser, "bright", prepare_bright, arguments)
    if role == "halve":
        parser.add_output_config()
        return run_processor(parser, "halved", prepare_halve, arguments)
    parser.add_argument("--pause", type=float, default=0.0)
    return run_processor(parser, "negated", prepare_negate, arguments)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
