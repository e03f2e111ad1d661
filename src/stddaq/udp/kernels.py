"""The loops over pixels of the converters, compiled by numba (the extra `udp`).

They release the GIL. The compiled code is kept on disk: beside this file, in the user's cache directory, or
where NUMBA_CACHE_DIR says. Where no directory is writable, each start compiles again, which takes seconds.
Shapes are not checked here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np

ADC_MASK = np.uint16(0x3FFF)
GAIN_SHIFT = np.uint16(14)
# Gain bits 1 0 do not occur.
INVALID_GAIN = 2
NO_DATA = np.uint16(0xFFFF)
SATURATED = np.uint16(0xC000)
# Pixels that are converted together if all are in gain 0.
BLOCK = 128
_LOW_4 = np.uint8(15)
_FOUR = np.uint8(4)
_EIGHT = np.uint16(8)


def compiled(function: Callable[..., Any]) -> Any:
    """Return a function compiled at its first call, or loaded from the cache."""
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # No directory for the cache.
        return numba.njit(nogil=True)(function)


def make_ready(first_call: Callable[[], object], function: Any) -> None:
    """Make the first call of compiled functions, of which `function` is one.

    If it fails, their cache is removed, and they are compiled again: a power failure may leave empty files.
    """
    try:
        first_call()
    except Exception:
        # There is no list of what damaged files raise. Another reason fails again.
        if function.stats.cache_path is None:
            raise
        for path in Path(function.stats.cache_path).glob("*.nb[ic]"):
            path.unlink(missing_ok=True)
        first_call()


@compiled
def place_gigafrost(frame, image, first_row, row_step, first_column, n_rows, n_columns):
    """Unpack a frame of 12-bit pixels (uint8) into every second row of the image (uint16)."""
    n_pairs = n_columns // 2
    for row in range(n_rows):
        line = image[first_row + row_step * row, first_column : first_column + n_columns]
        packed = frame[3 * n_pairs * row : 3 * n_pairs * (row + 1)]
        for i in range(n_pairs):
            middle = packed[3 * i + 1]
            line[2 * i] = np.uint16(packed[3 * i]) | np.uint16(np.uint16(middle & _LOW_4) << _EIGHT)
            line[2 * i + 1] = np.uint16(middle >> _FOUR) | np.uint16(
                np.uint16(packed[3 * i + 2]) << np.uint16(4)
            )


@compiled
def place_chips(frame, image, first_row, row_step, first_column, chip_columns, gap):
    """Copy a frame (rows, 2 * chip_columns) into the image, with `gap` zeros between its halves."""
    gap_column = first_column + chip_columns
    second_column = gap_column + gap
    for row in range(frame.shape[0]):
        pixels, line = frame[row], image[first_row + row_step * row]
        # Slices have indices that cannot be negative, so that the loops become copies of memory.
        left, right = line[first_column:gap_column], line[second_column : second_column + chip_columns]
        for column in range(left.size):
            left[column] = pixels[column]
        line[gap_column:second_column] = 0
        second = pixels[chip_columns:]
        for column in range(right.size):
            right[column] = second[column]


@compiled
def place(frame, image, first_row, first_column):
    """Copy a frame (rows, columns) into the image."""
    for row in range(frame.shape[0]):
        line = image[first_row + row, first_column : first_column + frame.shape[1]]
        for column in range(frame.shape[1]):
            line[column] = frame[row, column]


@compiled
def convert_jungfrau(frame, image, first_row, first_column, pedestals, factors):
    """Convert a frame (rows, columns) of uint16 into float32 of the image.

    `pedestals` and `factors` (4, rows, columns) by gain bits; a factor that is NaN marks a bad pixel. Return
    how many pixels had invalid gain bits, no data, and a saturated value.
    """
    n_invalid = n_without = n_saturated = 0
    n_columns = frame.shape[1]
    for row in range(frame.shape[0]):
        line = image[first_row + row, first_column : first_column + n_columns]
        for first in range(0, n_columns, BLOCK):
            raw, out = frame[row, first : first + BLOCK], line[first : first + BLOCK]
            highest = np.uint16(0)
            for i in range(raw.size):
                highest |= raw[i]
            if highest <= ADC_MASK:
                # Almost all blocks: the compiler makes vector instructions of this loop.
                pedestal, factor = (
                    pedestals[0, row, first : first + BLOCK],
                    factors[0, row, first : first + BLOCK],
                )
                for i in range(raw.size):
                    out[i] = (np.float32(raw[i]) - pedestal[i]) * factor[i]
                continue
            for i in range(raw.size):
                value, column = raw[i], first + i
                gain = value >> GAIN_SHIFT
                pixel = (np.float32(value & ADC_MASK) - pedestals[gain, row, column]) * factors[
                    gain, row, column
                ]
                if gain == INVALID_GAIN:
                    n_invalid += 1
                elif value == NO_DATA:
                    n_without += 1
                    pixel = np.float32(np.nan)
                elif value == SATURATED:
                    n_saturated += 1
                    if pixel == pixel:  # Not a bad pixel.
                        pixel = np.float32(np.inf)
                out[i] = pixel
    return n_invalid, n_without, n_saturated
