"""A processing service: correct every image by dark and flat, and publish it in another stream.

    python examples/average_images.py dark/darkMaster.h5 dark.npy
    python examples/average_images.py flat/flatMaster.h5 flat.npy
    python examples/flat_field.py --dark dark.npy --flat flat.npy --threads 2 CONFIG

The stream `<detector_name>-corrected` has (image - dark) / (flat - dark) times the average of flat - dark,
which keeps the units of the detector. Integer pixels are rounded and clipped. Writers, live streams and
compressors use it with `-s corrected`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np

from stddaq.config import DetectorConfig
from stddaq.errors import ConfigError
from stddaq.processing import Image, ServiceParser, run_processor


def prepare(config: DetectorConfig, args: argparse.Namespace) -> Callable[[Image, np.ndarray], None]:
    """Load the dark and flat image. The service calls it once, at its start."""
    # float32 holds 16-bit pixels exactly; 32-bit ones take float64.
    dtype = np.result_type(config.dtype, np.float32)
    dark = load(args.dark, config).astype(dtype)
    response = load(args.flat, config).astype(dtype) - dark
    is_alive = response > 0
    if not is_alive.any():
        raise ConfigError(f"{args.flat}: expected pixels brighter than in {args.dark}, got none")
    gain = np.zeros_like(response)  # Dead pixels are 0.
    gain[is_alive] = response[is_alive].mean(dtype=np.float64) / response[is_alive]

    def correct(image: Image, pixels: np.ndarray) -> None:
        """Fill `pixels` with the corrected image. Several threads call it."""
        corrected = (image.pixels - dark) * gain
        if pixels.dtype.kind != "f":
            limits = np.iinfo(pixels.dtype)
            np.rint(corrected, out=corrected)
            np.clip(corrected, limits.min, limits.max, out=corrected)
        np.copyto(pixels, corrected, casting="unsafe")

    return correct


def load(path: Path, config: DetectorConfig) -> np.ndarray:
    """Return the average image in a .npy file, (height, width)."""
    try:
        image = np.load(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    if image.shape != config.image_shape:
        raise ConfigError(f"{path}: expected shape {config.image_shape}, got {image.shape}")
    return image


if __name__ == "__main__":
    parser = ServiceParser("flat_field", "Subtract the dark image, divide by the flat image.")
    parser.add_argument("--dark", type=Path, required=True, help=".npy file of the average dark image")
    parser.add_argument("--flat", type=Path, required=True, help=".npy file of the average flat image")
    parser.add_threads()
    parser.add_output_config()
    raise SystemExit(run_processor(parser, "corrected", prepare))
