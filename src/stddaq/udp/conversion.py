"""From the frame of a module to its part of the image: one class per detector, without sockets.

`convert` writes every pixel of the module's place, gap columns between its chips included.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np

from stddaq.config import DetectorConfig
from stddaq.config.modules import EIGER_CHIP_COLUMNS, EIGER_FRAME_SIZE, EIGER_GAP_COLUMNS, JUNGFRAU_SIZE
from stddaq.udp import kernels
from stddaq.udp.jungfrau_gains import GainParameters
from stddaq.udp.placement import placement

HIGH_GAIN = 1


class Conversion(Protocol):
    """Converts the frames of one module.

    Attributes:
        pixel_counts: pixels without a value so far, by reason.
        kernel: compiled function of `convert_frames`.
    """

    pixel_counts: dict[str, int]
    kernel: Any

    def convert(self, frame: np.ndarray, image: np.ndarray, message: np.ndarray) -> None:
        """Write a frame (bytes of its slot) into the image (height, width). `message` announced it."""
        ...

    def convert_frames(self, loop: kernels.FrameLoop, frames: np.ndarray, images: np.ndarray) -> int:
        """Convert frames as they are announced. Return why something else is to be done; see `kernels`.

        `frames`: bytes (slots, bytes of a slot); `images`: (slots, height, width).
        """
        ...


class GigaFrostConversion(Conversion):
    """12 bits per pixel become 16."""

    kernel = staticmethod(kernels.place_gigafrost_frames)

    def __init__(self, config: DetectorConfig, module: int) -> None:
        """Raise `ConfigError` or `GeometryError` for what the camera does not have."""
        place, self.pixel_counts = placement(config, module), {}
        self._arguments = place.first_row, place.row_step, place.first_column, place.n_rows, place.n_columns

    def convert(self, frame: np.ndarray, image: np.ndarray, message: np.ndarray) -> None:
        del message
        kernels.place_gigafrost(frame, image, *self._arguments)

    def convert_frames(self, loop: kernels.FrameLoop, frames: np.ndarray, images: np.ndarray) -> int:
        return self.kernel(loop, frames, images, *self._arguments)


class EigerConversion(Conversion):
    """Two chips side by side with gap columns between them."""

    kernel = staticmethod(kernels.place_chips_frames)

    def __init__(self, config: DetectorConfig, module: int) -> None:
        """Raise `ConfigError` for a module without a position."""
        place, self._dtype = placement(config, module), config.dtype
        self.pixel_counts = {}
        columns = EIGER_CHIP_COLUMNS, EIGER_GAP_COLUMNS
        self._arguments = place.first_row, place.row_step, place.first_column, *columns

    def convert(self, frame: np.ndarray, image: np.ndarray, message: np.ndarray) -> None:
        del message
        kernels.place_chips(self._pixels(frame), image, *self._arguments)

    def convert_frames(self, loop: kernels.FrameLoop, frames: np.ndarray, images: np.ndarray) -> int:
        return self.kernel(loop, self._pixels(frames), images, *self._arguments)

    def _pixels(self, frames: np.ndarray) -> np.ndarray:
        return frames.view(self._dtype).reshape(*frames.shape[:-1], *EIGER_FRAME_SIZE)


class JungfrauRawConversion(Conversion):
    """Pixels with their gain bits, as they are."""

    kernel = staticmethod(kernels.place_frames)

    def __init__(self, config: DetectorConfig, module: int) -> None:
        """Raise `ConfigError` for a module without a position."""
        place, self.pixel_counts = placement(config, module), {}
        self._arguments = place.first_row, place.first_column

    def convert(self, frame: np.ndarray, image: np.ndarray, message: np.ndarray) -> None:
        del message
        kernels.place(_jungfrau_pixels(frame), image, *self._arguments)

    def convert_frames(self, loop: kernels.FrameLoop, frames: np.ndarray, images: np.ndarray) -> int:
        return self.kernel(loop, _jungfrau_pixels(frames), images, *self._arguments)


class JungfrauConversion(Conversion):
    """Pixels as energy: pedestal subtracted, multiplied by the factor of their gain.

    Pixels with gain bits that do not occur, and with the value for no data, become NaN; saturated ones become
    infinite.
    """

    kernel = staticmethod(kernels.convert_jungfrau_frames)

    def __init__(self, config: DetectorConfig, module: int, parameters: GainParameters) -> None:
        """Raise `ConfigError` for a module without a position."""
        self._place = placement(config, module)
        self._parameters = parameters
        self.pixel_counts = dict.fromkeys(("invalid", "without_data", "saturated"), 0)

    def convert(self, frame: np.ndarray, image: np.ndarray, message: np.ndarray) -> None:
        parameters, place = self._parameters, self._place
        is_high = parameters.has_high_gain and int(message["daq_rec"]) & HIGH_GAIN
        tables = parameters.high if is_high else parameters.low
        counts = kernels.convert_jungfrau(
            _jungfrau_pixels(frame),
            image,
            place.first_row,
            place.first_column,
            tables.pedestals,
            tables.factors,
        )
        self._count(counts)  # pyright: ignore[reportArgumentType]

    def convert_frames(self, loop: kernels.FrameLoop, frames: np.ndarray, images: np.ndarray) -> int:
        low, high = self._parameters.low, self._parameters.high
        counts = np.zeros(len(self.pixel_counts), np.int64)
        reason = self.kernel(
            loop,
            _jungfrau_pixels(frames),
            images,
            self._place.first_row,
            self._place.first_column,
            (low.pedestals, low.factors),
            (high.pedestals, high.factors),
            counts,
        )
        self._count(counts.tolist())
        return reason

    def _count(self, counts: Iterable[int]) -> None:
        for reason, count in zip(self.pixel_counts, counts, strict=True):
            self.pixel_counts[reason] += count


def _jungfrau_pixels(frames: np.ndarray) -> np.ndarray:
    return frames.view("<u2").reshape(*frames.shape[:-1], *JUNGFRAU_SIZE)
