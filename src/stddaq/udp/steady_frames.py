"""Frames that arrive in order and complete, received by compiled code. No I/O.

As long as each packet is the expected one, `steady_kernels` counts them and composes the messages of frames.
From the first other packet on, the rules of `FrameAssembly` apply, until frames arrive in order again.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import numpy as np

from stddaq.udp import steady_kernels as kernels
from stddaq.udp.batch_memory import BatchMemory
from stddaq.udp.compiling import make_ready
from stddaq.udp.frame import Frame
from stddaq.udp.frame_message import FRAME_MESSAGE_BYTES
from stddaq.udp.frame_ring import FrameMemory
from stddaq.udp.packets import Packets
from stddaq.udp.steady_assembly import SteadyAssembly
from stddaq.udp.zmq_function import address_of_send

# Frames whose identities `FrameOrder` learns later, all at once.
CAPACITY = 256
_WORD_BITS = 64
_NS = 1e9


def message_fields(packets: Packets) -> tuple[np.ndarray, np.ndarray]:
    """Return the frame message as 8 words without what a header adds, and which bits a header adds.

    Those are rows of (word of the header, shift, mask, word of the message, shift). The word after the header
    is the time of its reception. They are found by changing each bit of a header: what `describe` copies
    bit by bit. The id is not among them.
    """
    n_words = packets.header.itemsize // 8
    opening = packets.opening
    id_bits = range(8 * opening.id_offset, 8 * (opening.id_offset + opening.id_type.itemsize))
    template = _message_words(packets, 0, n_words)
    moves: list[tuple[int, int]] = []
    for bit in range((n_words + 1) * _WORD_BITS):
        if bit not in id_bits:
            changed = _message_words(packets, 1 << bit, n_words) ^ template
            moves += [
                (bit, _WORD_BITS * word + int(value).bit_length() - 1)
                for word, value in enumerate(changed)
                if value
            ]
    fields: list[list[int]] = []
    for i, (source, target) in enumerate(moves):
        is_next = i > 0 and (source - 1, target - 1) == moves[i - 1]
        if is_next and source % _WORD_BITS and target % _WORD_BITS:
            fields[-1][2] = fields[-1][2] << 1 | 1
        else:
            word, shift = divmod(source, _WORD_BITS)
            fields.append([word, shift, 1, *divmod(target, _WORD_BITS)])
    return template, np.array(fields, np.uint64).view(np.int64)


def _message_words(packets: Packets, bits: int, n_words: int) -> np.ndarray:
    """Return the message of a frame without missing packets; `bits` of its header and reception time."""
    n_bytes = 8 * n_words
    header = (bits & (1 << 8 * n_bytes) - 1).to_bytes(n_bytes, "little")
    message = packets.describe(header, bits >> 8 * n_bytes)[1]
    words = np.frombuffer(message, np.uint64).copy()
    words[1] = 0
    return words


class SteadyFrames:
    """The frames of one module while they arrive in order and complete."""

    def __init__(
        self, packets: Packets, memory: BatchMemory, assembly: SteadyAssembly, socket: int = 0
    ) -> None:
        """Continue the frames of an assembly, with packets that are received into `memory`.

        `socket`: address of the ZeroMQ socket that announces frames; 0: whoever calls `receive` does.
        """
        self._sender = (address_of_send(), socket) if socket else (0, 0)
        self._packets, self._memory, self._assembly = packets, memory, assembly
        assembly.is_compiled = True
        self._n_words = packets.header.itemsize // 8
        self._state = np.zeros(kernels.N_STATES, np.int64)
        self._set_constants()
        words = self._n_words
        self._openings = np.zeros((CAPACITY + 1, words + 1), np.uint64)
        self._messages = np.zeros((CAPACITY, FRAME_MESSAGE_BYTES // 8), np.uint64)
        template, fields = message_fields(packets)
        self._iovecs = memory.iovecs.view(np.int64).reshape(-1, 2, 2)
        self._datagrams = memory.messages.view(np.int64).reshape(-1, 8)
        self._controls = memory.dropped, memory.time_bytes, memory.controls.shape[1]
        self._headers = memory.headers.view(np.uint64).reshape(-1, words)
        self._expected = (
            packets.sequence.words,
            packets.sequence.lengths.astype(np.int64),
            packets.opening.same.view(np.uint64),
            self._openings,
            self._messages,
            template,
            fields,
        )
        self._clock = np.zeros(2, np.int64)

    def _set_constants(self) -> None:
        state, packets = self._state, self._packets
        state[kernels.N_DROPPED] = -1
        opening = packets.opening
        state[kernels.N_PACKETS] = packets.n_packets
        state[kernels.N_EQUAL] = packets.n_packets - (packets.last_bytes != packets.row_bytes)
        state[kernels.LAST_BYTES] = packets.last_bytes
        state[kernels.HIGHEST_ID] = opening.highest_id
        state[kernels.ID_WORD], state[kernels.ID_SHIFT] = divmod(8 * opening.id_offset, _WORD_BITS)
        state[kernels.ID_IS_DOUBLE] = opening.id_type.kind == "f"
        state[kernels.ID_MASK] = np.uint64(2 ** (8 * opening.id_type.itemsize) - 1).astype(np.int64)

    def start(self) -> bool:
        """Continue after the last frame. Return whether frames arrive in order."""
        found, state, pace = self._assembly.steady, self._state, self._assembly.pace
        if found is None or found[1] > state[kernels.HIGHEST_ID]:
            return False
        header, state[kernels.ID], state[kernels.STEP] = found
        self._openings[0, : self._n_words] = np.frombuffer(header, np.uint64)
        state[kernels.ROW] = state[kernels.N_DONE] = state[kernels.N_SENT] = 0
        state[kernels.OPENED_AT] = round(pace.opened_at * _NS)
        state[kernels.PERIOD], state[kernels.INTERVAL] = round(pace.period * _NS), round(pace.interval * _NS)
        if (frame := self._assembly.release()) is not None:
            self._continue(frame)
        return True

    def _continue(self, frame: Frame) -> None:
        """Continue a frame whose first packets have arrived."""
        state, pace = self._state, self._assembly.pace
        state[kernels.ROW], state[kernels.LAST_AT] = frame.next, round(frame.last_at * _NS)
        # How many packets have opened it is not known.
        state[kernels.OPENED_WITH] = 0 if frame.last_at > pace.opened_at else frame.next
        opening = self._openings[1]
        opening[: self._n_words] = np.frombuffer(frame.first_header, np.uint64)
        opening[self._n_words] = frame.received

    def compile(self, frames: FrameMemory) -> None:
        """Compile `receive`, or load it from the cache."""
        self._state[kernels.ID] = self._state[kernels.HIGHEST_ID] + 1
        nothing = np.zeros(2, np.int64), 0.0, (0.0, 0.0), 0.0
        make_ready(lambda: self.receive(*nothing, frames), kernels.receive)

    def aim(self, frames: FrameMemory) -> int:
        """Let the next payloads go where they belong. Return for how many there are places."""
        self._memory.is_aimed = True
        return kernels.aim(self._state, self._iovecs, self._memory.payloads, self._openings, *frames)

    def take(self, n: int, now: float, frames: FrameMemory) -> bool:
        """Take a batch of `n` datagrams. Return whether all were expected; otherwise call `leave`."""
        state, memory = self._state, self._memory
        state[kernels.N_RECEIVED] = n
        batch = self._headers, self._datagrams, memory.times, memory.payloads
        return kernels.take(state, round(now * _NS), *batch, *self._expected, *frames) == n

    def receive(
        self, polled: np.ndarray, due: float, wait: tuple[float, float], idle_time: float, frames: FrameMemory
    ) -> bool:
        """Receive and announce frames. Return whether to continue after `unannounced` and `settle`.

        If not, something else is due, or has arrived.

        `polled`: the structures of poll(2) of the socket and of what ends the wait. `due` in s (monotonic);
        `wait`: shortest and longest time, in s, to wait for more packets.
        """
        memory, shortest, longest = self._memory, *wait
        memory.is_aimed = True
        reason = kernels.receive(
            self._state,
            self._clock,
            polled,
            int(due * _NS),
            int(shortest * _NS),
            int(longest * _NS),
            int(idle_time * _NS),
            *self._sender,
            self._headers,
            self._datagrams,
            self._controls,
            memory.times,
            self._iovecs,
            memory.payloads,
            *self._expected,
            *frames,
        )
        return reason == kernels.ANNOUNCE

    def counts(self) -> tuple[int, int | None]:
        """Return the calls since this was asked, and how many datagrams the socket has dropped, if known."""
        state = self._state
        n_calls, n_dropped = int(state[kernels.N_CALLS]), int(state[kernels.N_DROPPED])
        state[kernels.N_CALLS], state[kernels.N_DROPPED] = 0, -1
        return n_calls, None if n_dropped < 0 else n_dropped

    def unannounced(self) -> Iterator[np.ndarray]:
        """Yield the messages of the frames that are complete and could not be announced."""
        state = self._state
        n_sent, state[kernels.N_SENT] = int(state[kernels.N_SENT]), state[kernels.N_DONE]
        yield from self._messages[n_sent : int(state[kernels.N_DONE])]

    @property
    def is_full(self) -> bool:
        """Whether `settle` is due."""
        return bool(self._state[kernels.N_DONE] > CAPACITY // 2)

    def settle(self) -> None:
        """Let the assembly count the frames that were announced."""
        state, openings, pace, n_words = self._state, self._openings, self._assembly.pace, self._n_words
        n_done = int(state[kernels.N_DONE])
        self._assembly.add_steady([header.tobytes() for header in openings[1 : n_done + 1, :n_words]])
        openings[:2] = openings[n_done : n_done + 2]
        state[kernels.N_DONE] = state[kernels.N_SENT] = 0
        if n_done or state[kernels.ROW]:
            pace.packet_at, pace.opened_at = state[kernels.LAST_AT] / _NS, state[kernels.OPENED_AT] / _NS
            pace.period = state[kernels.PERIOD] / _NS
            pace.interval = state[kernels.INTERVAL] / _NS

    def leave(self, now: float) -> None:
        """Let the assembly continue, with the packets of the last batch that were not expected, if any."""
        self.settle()
        state, assembly = self._state, self._assembly
        if n := int(state[kernels.ROW]):
            *header, received = self._openings[1].tolist()
            time = np.array(divmod(received, 10**9), np.int64)
            first = np.array(header, np.uint64).tobytes()
            assembly.open_steady(first, time, n, state[kernels.LAST_AT] / _NS)
        taken, n = int(state[kernels.N_TAKEN]), int(state[kernels.N_RECEIVED])
        state[kernels.N_TAKEN] = state[kernels.N_RECEIVED] = 0
        if taken < n:
            memory, rest = self._memory, slice(taken, n)
            payloads = self._payloads(rest)
            assembly.add(memory.headers[rest], payloads, memory.lengths[rest], memory.times[rest], now)

    def _payloads(self, rest: slice) -> np.ndarray:
        """Return copies of payloads, which are in places of other ones."""
        places = self._iovecs[rest, 1, 0]
        payloads = np.empty((len(places), self._packets.row_bytes), np.uint8)
        for payload, place in zip(payloads, places.tolist(), strict=True):
            ctypes.memmove(payload.ctypes.data, place, payload.nbytes)
        return payloads
