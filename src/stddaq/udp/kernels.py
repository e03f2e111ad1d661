"""The loops over pixels and over frames of the converters, compiled by numba (the extra `udp`).

The loops over frames convert one after the other: between two of its calls the interpreter would find cold
caches. They return when anything but a frame of a receiver of stddaq is to be handled; see `SteadyConverter`.
They are in this file, because numba does not notice when a function that a cached one calls was changed.

All release the GIL. Shapes are not checked here.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import types
from numba.extending import intrinsic

from stddaq.dataplane.ring_layout import CURSOR_HEADER
from stddaq.udp.compiling import compiled
from stddaq.udp.frame_message import BY_CONVERTER, FRAME_MESSAGE_BYTES, IN_ORDER, SEQUENCE_MASK
from stddaq.udp.zmq_function import call_zmq

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

# Places in the state of a loop over frames: what is constant (`LINK_SET` is -1 without),
PART, LINK_SET, DUE_AT = range(3)
# the last mark; frames converted, and overwritten; bytes of the last message, and the slots of its frame.
MARK, N_CONVERTED, N_OVERWRITTEN, N_BYTES, FRAME_SLOT, IMAGE_SLOT = range(3, 9)
N_STATES = 9
# Why such a loop returns: the time, or what else is waited for; a message that it does not handle; one that
# could not be sent.
DUE, RECEIVED, UNSENT = range(3)
_CONVERT = 3
# A longer message is none, which its size shows.
MESSAGE_WORDS = FRAME_MESSAGE_BYTES // 8 + 1

_NONE = np.uint64(0)
_LOW_32, _SEQUENCE_SHIFT = np.uint64(0xFFFFFFFF), np.uint64(32)
_LINK_SET_SHIFT, _LINK_SET_BITS = np.uint64(48), np.uint64(0xFF << 48)
_DAQ_REC_SHIFT, HIGH_GAIN = np.uint64(16), np.uint64(1)
_CLOCK_MONOTONIC, _NANOSECONDS, _MILLISECOND = 1, 10**9, 10**6
_ZMQ_DONTWAIT, _ZMQ_POLLIN, _ZMQ_EVENTS, _POLLED_EVENTS = 1, 1, 15, 0xFFFFFFFFFFFF
_clock_gettime = types.ExternalFunction("clock_gettime", types.int32(types.int32, types.intp))


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


class FrameLoop(NamedTuple):
    """What loops over frames share, as arrays of int64 or uint64.

    `state`: see its places; `functions`: addresses of zmq_recv, zmq_send, zmq_poll and zmq_getsockopt;
    `sockets`: of frames, their monitor, and of converted frames; `polled`: the structures of zmq_poll(3) of
    the socket of frames and of what ends the wait; `message`: the last one; `frame_cursor`, `image_cursor`:
    words of the cursors of both rings (see `ring_buffer`); `scratch`: 2 words.
    """

    state: np.ndarray
    functions: np.ndarray
    sockets: np.ndarray
    polled: np.ndarray
    message: np.ndarray
    frame_cursor: np.ndarray
    image_cursor: np.ndarray
    scratch: np.ndarray


@intrinsic
def _fence(typing_context):
    """Let all that was read and written before happen before what follows."""
    del typing_context

    def generate(context, builder, signature, arguments):
        del signature, arguments
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


@compiled
def _now(scratch):
    _clock_gettime(_CLOCK_MONOTONIC, scratch.ctypes.data)
    return scratch[0] * _NANOSECONDS + scratch[1]


@compiled
def _wait(loop, now):
    """Wait until a frame was announced. Return False if something else is due."""
    polled = loop.polled
    milliseconds = (loop.state[DUE_AT] - now + _MILLISECOND - 1) // _MILLISECOND
    polled[1] &= _POLLED_EVENTS
    polled[3] &= _POLLED_EVENTS
    n = call_zmq(loop.functions[2], polled.ctypes.data, 2, milliseconds, 0)  # pyright: ignore[reportCallIssue]
    return n > 0 and polled[3] & ~_POLLED_EVENTS == 0


@compiled
def _is_trusted(loop):
    """Return whether the connections are those that were checked before."""
    scratch = loop.scratch
    # So it is not trusted either if it cannot be asked.
    scratch[0], scratch[1] = _ZMQ_POLLIN, 4
    data = scratch.ctypes.data
    call_zmq(loop.functions[3], loop.sockets[1], _ZMQ_EVENTS, data, data + 8)  # pyright: ignore[reportCallIssue]
    return scratch[0] & _ZMQ_POLLIN == 0


@compiled
def _holds(loop):
    """Return whether the slot of a frame holds what its message says."""
    stamp = loop.frame_cursor[CURSOR_HEADER + loop.state[FRAME_SLOT]]
    return stamp & np.uint64(SEQUENCE_MASK) == loop.message[7] >> _SEQUENCE_SHIFT


@compiled
def _begin(loop, n_frames, n_images):
    """Wait for the next frame, and open the slot of its image. Return `_CONVERT`, or why not."""
    state, message, image_cursor = loop.state, loop.message, loop.image_cursor
    while True:
        now = _now(loop.scratch)
        if now >= state[DUE_AT]:
            return DUE
        size = 8 * MESSAGE_WORDS
        n = call_zmq(loop.functions[0], loop.sockets[0], message.ctypes.data, size, _ZMQ_DONTWAIT)  # pyright: ignore[reportCallIssue]
        if n < 0:
            if not _wait(loop, now):
                return DUE
            continue
        state[N_BYTES] = n
        # After the message, because libzmq reports a connection before it receives from it.
        if n != FRAME_MESSAGE_BYTES or message[7] >> _SEQUENCE_SHIFT == _NONE or not _is_trusted(loop):
            return RECEIVED
        state[FRAME_SLOT] = np.int64(message[0] % np.uint64(n_frames))
        slot = state[IMAGE_SLOT] = np.int64(message[0] % np.uint64(n_images))
        if not _holds(loop):
            state[N_OVERWRITTEN] += 1
            continue
        state[MARK] = (state[MARK] + 1) % BY_CONVERTER
        # See `RingBuffer.begin_part`: in this order.
        image_cursor[CURSOR_HEADER + (1 + state[PART]) * n_images + slot] = np.uint64(
            state[MARK] | BY_CONVERTER | IN_ORDER
        )
        _fence()  # pyright: ignore[reportCallIssue]
        image_cursor[CURSOR_HEADER + slot] = _NONE
        _fence()  # pyright: ignore[reportCallIssue]
        return _CONVERT


@compiled
def _end(loop):
    """Send the message of a converted frame, unless it was overwritten. Return whether that was possible."""
    state, message = loop.state, loop.message
    _fence()  # pyright: ignore[reportCallIssue]
    if not _holds(loop):
        state[N_OVERWRITTEN] += 1
        return True
    mark = np.uint64(state[MARK] | BY_CONVERTER | IN_ORDER)
    message[7] = message[7] & _LOW_32 | mark << _SEQUENCE_SHIFT
    if state[LINK_SET] >= 0:
        message[2] = message[2] & ~_LINK_SET_BITS | np.uint64(state[LINK_SET]) << _LINK_SET_SHIFT
    state[N_CONVERTED] += 1
    data, n = message.ctypes.data, FRAME_MESSAGE_BYTES
    return call_zmq(loop.functions[1], loop.sockets[2], data, n, _ZMQ_DONTWAIT) == n  # pyright: ignore[reportCallIssue]


@compiled
def place_gigafrost_frames(loop, frames, images, first_row, row_step, first_column, n_rows, n_columns):
    """Convert announced frames like `place_gigafrost`. Return why something else is to be done."""
    state = loop.state
    while True:
        reason = _begin(loop, len(frames), len(images))
        if reason != _CONVERT:
            return reason
        frame, image = frames[state[FRAME_SLOT]], images[state[IMAGE_SLOT]]
        place_gigafrost(frame, image, first_row, row_step, first_column, n_rows, n_columns)
        if not _end(loop):
            return UNSENT


@compiled
def place_chips_frames(loop, frames, images, first_row, row_step, first_column, chip_columns, gap):
    """Convert announced frames like `place_chips`. Return why something else is to be done."""
    state = loop.state
    while True:
        reason = _begin(loop, len(frames), len(images))
        if reason != _CONVERT:
            return reason
        frame, image = frames[state[FRAME_SLOT]], images[state[IMAGE_SLOT]]
        place_chips(frame, image, first_row, row_step, first_column, chip_columns, gap)
        if not _end(loop):
            return UNSENT


@compiled
def place_frames(loop, frames, images, first_row, first_column):
    """Convert announced frames like `place`. Return why something else is to be done."""
    state = loop.state
    while True:
        reason = _begin(loop, len(frames), len(images))
        if reason != _CONVERT:
            return reason
        place(frames[state[FRAME_SLOT]], images[state[IMAGE_SLOT]], first_row, first_column)
        if not _end(loop):
            return UNSENT


@compiled
def convert_jungfrau_frames(loop, frames, images, first_row, first_column, low, high, counts):
    """Convert announced frames like `convert_jungfrau`. Return why something else is to be done.

    `low`, `high`: pedestals and factors for low and high gain. What `convert_jungfrau` returns is added to
    `counts`.
    """
    state = loop.state
    while True:
        reason = _begin(loop, len(frames), len(images))
        if reason != _CONVERT:
            return reason
        tables = high if loop.message[4] >> _DAQ_REC_SHIFT & HIGH_GAIN else low
        frame, image = frames[state[FRAME_SLOT]], images[state[IMAGE_SLOT]]
        found = convert_jungfrau(frame, image, first_row, first_column, tables[0], tables[1])
        for i in range(len(found)):
            counts[i] += found[i]
        if not _end(loop):
            return UNSENT
