"""The loop of a receiver while its frames arrive in order and complete, compiled by numba (the extra `udp`).

It receives batch after batch, checks each packet, and composes and sends the messages of complete frames:
between two of its calls the interpreter would find cold caches. It returns as soon as anything else arrives.
It never decides what that means: the packets from the first unexpected one on are left to the rules of
`assembly`.

Everything is in one file, because numba does not notice when a function that a cached one calls was changed.
See `SteadyFrames` for the arrays.
"""

from __future__ import annotations

import numpy as np
from numba import types

from stddaq.udp.compiling import compiled
from stddaq.udp.frame_message import SEQUENCE_MASK
from stddaq.udp.frame_pace import LONGEST_PERIOD_S
from stddaq.udp.zmq_function import call_zmq

# Places in `state`: what is constant,
N_PACKETS, N_EQUAL, LAST_BYTES, STEP, HIGHEST_ID, ID_WORD, ID_SHIFT, ID_IS_DOUBLE, ID_MASK = range(9)
# the frame that is being received: its id, and how many of its packets have arrived; how many frames are
# complete, how many of them were announced, and when the first of the others was complete;
ID, ROW, N_DONE, N_SENT, DONE_AT = range(9, 14)
# when the last frame was opened, and with how many packets; time of the last packet, and between frames and
# packets;
OPENED_AT, OPENED_WITH, LAST_AT, PERIOD, INTERVAL = range(14, 19)
# the last batch: its datagrams, and how many of them were expected; calls; datagrams dropped.
N_RECEIVED, N_TAKEN, N_CALLS, N_DROPPED = range(19, 23)
N_STATES = 23

# Why `receive` returns: something else is due, frames are to be announced or counted, or a packet was not
# expected.
DUE, ANNOUNCE, UNEXPECTED = range(3)

# Frames whose places are chosen ahead. Each costs the frame that its slot still holds.
FRAMES_AHEAD = 32
# Words of the cursor segment (see `ring_buffer`): the last sequence number, and that of the first slot.
SEQUENCE_WORD, FIRST_SLOT_WORD = 7, 24
# As a fraction: see `frame_pace.INTERVAL_DECAY`.
_DECAY = 95, 100
_LONGEST_PERIOD = round(LONGEST_PERIOD_S * 1e9)
# Frames that are so rare cost little, so that more wake-ups are allowed for each: to wait half as long as it
# should take, again and again, misses the last packet by less. As a fraction of the shortest wait otherwise.
_RARE_PERIOD, _SHORTER = 5_000_000, 5
_LOW_32 = 0xFFFFFFFF
_NO_BITS = np.uint64(0)

_CLOCK_MONOTONIC, _POLLIN, _REVENTS_SHIFT, _EVENTS = 1, 1, 48, 0xFFFFFFFFFFFF
_NANOSECONDS, _MILLISECOND = 10**9, 10**6
_MSG_DONTWAIT_AND_TRUNC = 0x60
# Functions of the C library. Unlike those of ctypes, they can be part of a cached function.
_c_int, _c_pointer = types.int32, types.intp
_recvmmsg = types.ExternalFunction("recvmmsg", _c_int(_c_int, _c_pointer, types.uint32, _c_int, _c_pointer))
_poll = types.ExternalFunction("poll", _c_int(_c_pointer, types.uint64, _c_int))
_nanosleep = types.ExternalFunction("nanosleep", _c_int(_c_pointer, _c_pointer))
_ZMQ_DONTWAIT = 1
_clock_gettime = types.ExternalFunction("clock_gettime", _c_int(_c_int, _c_pointer))


@compiled
def aim(state, iovecs, spare, openings, slots, cursor):
    """Let the next payloads go where they belong. Return for how many there are places."""
    id_, row, n_done = state[ID], state[ROW], state[N_DONE]
    n_packets, n_equal = state[N_PACKETS], state[N_EQUAL]
    n, n_frames = 0, 0
    while n < len(iovecs):
        if n_frames == FRAMES_AHEAD or n_done + n_frames >= len(openings) - 1 or id_ > state[HIGHEST_ID]:
            break
        slot = id_ % len(slots)
        if row == 0:
            cursor[FIRST_SLOT_WORD + slot] = _NO_BITS  # Readers do not trust it.
        base = slots.ctypes.data + slot * slots.strides[0]
        for place in range(row, min(n_packets, row + len(iovecs) - n)):
            # The last one, if it is shorter, has no room for the payload of another one.
            is_equal = place < n_equal
            iovecs[n, 1, 0] = (
                base + place * spare.shape[1] if is_equal else spare.ctypes.data + n * spare.shape[1]
            )
            n += 1
        row, id_, n_frames = 0, id_ + state[STEP], n_frames + 1
    return n


@compiled
def _opens_next(state, header, before, same):
    """Return whether a packet is the first one of the frame with the expected id."""
    word = header[state[ID_WORD]]
    if state[ID_IS_DOUBLE]:
        differs = word ^ np.float64(state[ID]).view(np.uint64)
    else:
        differs = (word >> np.uint64(state[ID_SHIFT]) ^ np.uint64(state[ID])) & np.uint64(state[ID_MASK])
    for i in range(len(header)):
        differs |= (header[i] ^ before[i]) & same[i]
    return differs == _NO_BITS


@compiled
def _complete(state, opening, message, template, fields, cursor, n_slots):
    """Compose the message of a frame that is complete, and let readers trust its slot."""
    for i in range(len(message)):
        message[i] = template[i]
    for i in range(len(fields)):
        value = opening[fields[i, 0]] >> np.uint64(fields[i, 1]) & np.uint64(fields[i, 2])
        message[fields[i, 3]] |= value << np.uint64(fields[i, 4])
    message[0] = np.uint64(state[ID])
    sequence = cursor[SEQUENCE_WORD] + np.uint64(1)
    if sequence & np.uint64(SEQUENCE_MASK) == _NO_BITS:
        sequence += np.uint64(1)  # 0 means that there is no number.
    cursor[SEQUENCE_WORD] = sequence
    cursor[FIRST_SLOT_WORD + state[ID] % n_slots] = sequence
    message[7] |= (sequence & np.uint64(SEQUENCE_MASK)) << np.uint64(32)


@compiled
def take(
    state, now, headers, datagrams, times, spare, sequence, lengths, same, openings, messages,
    template, fields, slots, cursor,
):  # fmt: skip
    """Take the packets of a batch, as long as they are the expected ones. Return how many were."""
    n_words, n_packets = headers.shape[1], state[N_PACKETS]
    row, n_done = state[ROW], state[N_DONE]
    state[N_TAKEN], is_opened = 0, False
    for i in range(state[N_RECEIVED]):
        opening = openings[n_done + 1]
        if row == 0:
            if not _opens_next(state, headers[i], openings[n_done], same):
                break
            for word in range(n_words):
                opening[word] = headers[i, word]
            opening[n_words] = np.uint64(times[i, 0] * _NANOSECONDS + times[i, 1])
        differs = np.uint64((datagrams[i, 7] & _LOW_32) ^ lengths[row])
        for word in range(n_words):
            differs |= headers[i, word] ^ sequence[row, word] ^ opening[word]
        if differs != _NO_BITS:
            break
        if row == 0:
            opened = now - state[OPENED_AT]
            state[PERIOD] = min(max(opened, state[PERIOD] // 2), _LONGEST_PERIOD)
            state[OPENED_AT], is_opened = now, True
        if row >= state[N_EQUAL]:
            slot, start = state[ID] % len(slots), row * spare.shape[1]
            for byte in range(state[LAST_BYTES]):
                slots[slot, start + byte] = spare[i, byte]
        row += 1
        state[LAST_AT] = now
        if row == n_packets:
            _complete(state, opening, messages[n_done], template, fields, cursor, len(slots))
            if n_done == state[N_SENT]:
                state[DONE_AT] = now
            n_done, row = n_done + 1, 0
            state[ID] += state[STEP]
            state[INTERVAL] = state[INTERVAL] * _DECAY[0] // _DECAY[1]
        state[ROW], state[N_DONE] = row, n_done
        state[N_TAKEN] = i + 1
    if is_opened:
        state[OPENED_WITH] = row
    return state[N_TAKEN]


@compiled
def _announce(state, messages, function, socket):
    """Send the messages of the complete frames. Return whether this was possible."""
    n_bytes = messages.shape[1] * 8
    while function and state[N_SENT] < state[N_DONE]:
        message = messages.ctypes.data + state[N_SENT] * n_bytes
        n_sent = call_zmq(function, socket, message, n_bytes, _ZMQ_DONTWAIT)  # pyright: ignore[reportCallIssue]
        if n_sent != n_bytes:
            break  # Python tries again, and raises what this is.
        state[N_SENT] += 1
    return state[N_SENT] == state[N_DONE]


@compiled
def _now(clock):
    _clock_gettime(_CLOCK_MONOTONIC, clock.ctypes.data)
    return clock[0] * _NANOSECONDS + clock[1]


@compiled
def _sleep(clock, duration):
    clock[0], clock[1] = duration // _NANOSECONDS, duration % _NANOSECONDS
    _nanosleep(clock.ctypes.data, 0)


@compiled
def _complete_in(state, now):
    """Return the time until the frame that is being received, or the next one, should be complete."""
    if state[ROW] == 0:
        return max(0, state[OPENED_AT] + state[PERIOD] - now) + state[N_PACKETS] * state[INTERVAL]
    if state[ROW] > state[OPENED_WITH]:
        # The packets that opened it had waited for an unknown time.
        state[INTERVAL] = (state[LAST_AT] - state[OPENED_AT]) // (state[ROW] - state[OPENED_WITH])
    return (state[N_PACKETS] - state[ROW]) * state[INTERVAL]


@compiled
def _wait_for(state, expected, shortest, longest):
    """Return how long to wait for packets that should all have arrived after `expected`."""
    if state[PERIOD] < _RARE_PERIOD:
        return min(max(expected, shortest), longest)
    return min(max(expected // 2, shortest // _SHORTER), longest)


@compiled
def receive(
    state, clock, polled, due, shortest, longest, idle, function, socket, headers, datagrams, controls, times,
    iovecs, spare, sequence, lengths, same, openings, messages, template, fields, slots, cursor,
):  # fmt: skip
    """Receive frames, and announce them with a function, unless this is 0, and its socket.

    Return why something else is to be done. All times in ns.
    """
    was_readable = has_waited = False
    while True:
        n_places = aim(state, iovecs, spare, openings, slots, cursor)
        n = 0
        if n_places:
            n = _recvmmsg(
                np.int32(polled[0] & _LOW_32), datagrams.ctypes.data, n_places, _MSG_DONTWAIT_AND_TRUNC, 0
            )
        now = _now(clock)
        if n > 0:
            was_readable = has_waited = False
            state[N_CALLS] += 1
            dropped, bytes_of_time, n_bytes = controls
            if datagrams[n - 1, 5] > bytes_of_time:
                state[N_DROPPED] = dropped[n - 1, 0]
            for i in range(n):
                datagrams[i, 5] = n_bytes
            state[N_RECEIVED] = n
            taken = take(
                state, now, headers, datagrams, times, spare, sequence, lengths, same, openings, messages,
                template, fields, slots, cursor,
            )  # fmt: skip
            if taken < n:
                return UNEXPECTED
        is_announcing = state[N_DONE] > state[N_SENT]
        if is_announcing:
            # A frame that is complete waits for the next one, if that comes soon: announcing two, which wakes
            # other threads, costs hardly more than one.
            left = state[DONE_AT] + longest - now
            wait = 0 if n == n_places else max(_complete_in(state, now), shortest)
            if wait > left or now >= due or not n_places:
                if not _announce(state, messages, function, socket) or state[N_DONE] > len(messages) // 2:
                    return ANNOUNCE
                if now >= due or not n_places:
                    return DUE
                was_readable = has_waited = False
                continue
        elif now >= due or not n_places:
            return DUE
        elif n == n_places:
            wait = 0
        elif n > 0 or (
            state[ROW] == 0 and not has_waited and state[OPENED_AT] + state[PERIOD] - now < longest
        ):
            # Not for the first packet of a frame that is expected anyway: each wake-up costs as many packets.
            has_waited = True
            wait = _wait_for(state, _complete_in(state, now), shortest, longest)
        else:
            until = min(due, state[LAST_AT] + idle) if state[ROW] else due
            if was_readable or until <= now:
                return DUE
            polled[0] &= _EVENTS
            polled[1] &= _EVENTS
            milliseconds = (until - now + _MILLISECOND - 1) // _MILLISECOND
            if _poll(polled.ctypes.data, 2, milliseconds) < 0 or polled[1] >> _REVENTS_SHIFT:
                return DUE
            was_readable = polled[0] >> _REVENTS_SHIFT != 0
            wait = 0
            if was_readable and state[ROW] == 0:
                expected = state[N_PACKETS] * state[INTERVAL]
                wait = _wait_for(state, expected, shortest, longest)
                if wait > expected:
                    wait = 0
        if wait:
            _sleep(clock, wait)
