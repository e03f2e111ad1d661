"""`stddaq replay`: publishes recorded images as the detector would, with every pixel unchanged."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import numpy as np

from stddaq.config import DetectorConfig
from stddaq.daemon.arguments import ArgumentParser
from stddaq.daemon.log import event
from stddaq.daemon.main import StopRequest, run
from stddaq.errors import SourceError
from stddaq.sources.image_files import RecordedImages, open_images, read_image_ids
from stddaq.sources.image_ids import ImageIds
from stddaq.sources.image_sink import ImageProvider
from stddaq.sources.loop import run_source
from stddaq.sources.options import add_source_options, source_options
from stddaq.sources.simulated.detector_fields import last_image_id
from stddaq.text import mismatch


class RecordedProvider(ImageProvider):
    """The images of a file, in its order."""

    def __init__(
        self, images: RecordedImages, loop: bool, put: Callable[[np.ndarray, np.ndarray], None]
    ) -> None:
        self._images, self._put = images, put
        self.length: int | None = None if loop else len(images)

    @classmethod
    def of(
        cls,
        images: RecordedImages,
        shape: tuple[int, int],
        dtype: np.dtype,
        *,
        loop: bool = False,
        cast: bool = False,
    ) -> RecordedProvider:
        """Return the images of a file for a detector. Raise `SourceError` if they do not fit."""
        return cls(images, loop, _conversion(shape, dtype, images, cast))

    def fill(self, slot: np.ndarray, position: int, image_id: int) -> None:
        del image_id  # Images are published in the order of the file, whatever their ids.
        self._put(slot, self._images[position % len(self._images)])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the replay. Return the exit code."""
    parser = ArgumentParser("stddaq replay", "Publish recorded images as a detector would.")
    parser.add_config()
    parser.add_argument(
        "images", metavar="FILE[:dataset]", help="HDF5, npy or TIFF file of one or more images"
    )
    parser.add_argument("--loop", action="store_true", help="start again after the last image")
    parser.add_argument(
        "--cast",
        action="store_true",
        help="round the pixels and limit them to the range of the pixel type",
    )
    parser.add_argument("--ids", metavar="FILE:dataset", help="image ids, one for each image of the file")
    add_source_options(parser)
    return run(parser, _serve, argv)


def _serve(config: DetectorConfig, args: argparse.Namespace, stop: StopRequest) -> None:
    with open_images(args.images) as images:
        provider = RecordedProvider.of(
            images, config.image_shape, config.dtype, loop=args.loop, cast=args.cast
        )
        ids = None
        if args.ids is not None:
            if args.first_id or args.skip_every:
                raise SourceError(mismatch("--ids", "no --first-id or --skip-every beside it", "both"))
            ids = ImageIds(listed=read_image_ids(args.ids, len(images), last_image_id(config)))
        options = source_options(config, args, ids)
        images[0]  # Refuse a file whose images cannot be decoded before the start.
        event("replaying %d images of %s", len(images), images.where)
        run_source("replay", config, provider, options, stop)


def _conversion(
    shape: tuple[int, int], dtype: np.dtype, images: RecordedImages, cast: bool
) -> Callable[[np.ndarray, np.ndarray], None]:
    """Return the function that puts an image into its slot. Raise `SourceError` if images do not fit."""
    n, height, width = images.shape
    lossless = np.can_cast(images.dtype, dtype, "safe")
    if (height, width) == shape and (lossless or cast):
        return np.copyto if lossless else _put_rounded
    advice = "" if (height, width) != shape else "--cast rounds and limits the pixels"
    expected = f"images of {shape[0]}x{shape[1]} {dtype}"
    got = f"{n} images of {height}x{width} {images.dtype}"
    raise SourceError(mismatch(images.where, expected, got, advice))


def _put_rounded(slot: np.ndarray, pixels: np.ndarray) -> None:
    """Convert to the slot's type: round to integers within its range; not-a-number becomes 0."""
    if slot.dtype.kind == "f":
        slot[...] = pixels
        return
    limits = np.iinfo(slot.dtype)
    if pixels.dtype.kind == "f":
        pixels = np.rint(np.nan_to_num(pixels.astype(np.float64), posinf=limits.max, neginf=limits.min))
    slot[...] = np.clip(pixels, limits.min, limits.max)
