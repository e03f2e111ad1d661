"""Frames from packets: which packets belong together, and when a frame is complete. No I/O.

A frame is announced when it is complete, or when it is closed: after an idle time, or by the second frame
after it. Frames leave in the order of their ids (see `frame_order`). What was not received is 0.

Packets are received where they belong if they arrive in order, see `aim`: the rest of the current frame, or
the next one. Others are copied.

A frame that skips ids may be the work of one wrong header. If it lacks packets, it waits for evidence: it is
discarded when the frame that it has skipped arrives complete.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Mapping
from typing import Protocol

import numpy as np

from stddaq.udp.frame import Frame, rows_of
from stddaq.udp.frame_order import FrameOrder, Identity, Place
from stddaq.udp.frame_pace import FramePace
from stddaq.udp.frame_ring import FRAME_SLOTS
from stddaq.udp.packets import Packets

# The current frame, and the next one while packets are out of order.
MAX_OPEN = 2
# A frame is closed this long after its last packet, plus one frame period.
IDLE_TIME_S = 0.01
# The same of a frame that may have a wrong id: the next frame shows it, if it arrives before.
DOUBT_TIME_S = 0.5

# Frames of fewer packets are received several at once, and copied.
MIN_AIMED = 32

_N_MISSING = struct.Struct("<Q")
_N_MISSING_OFFSET = 8


class FrameSink(Protocol):
    """Where frames go: the frame ring."""

    def begin(self, frame_id: int) -> np.ndarray:
        """Return the slot of a frame, an array of bytes."""
        ...

    def commit_bytes(self, frame_id: int, message: bytearray) -> None:
        """Announce the frame."""
        ...


class FrameAssembly:
    """Assembles the frames of one module.

    Attributes:
        n_packets: valid packets, repeated and late ones included.
        n_bad: packets that are not valid, by kind.
        n_repeated, n_late: packets that had arrived before, or whose frames had left or been discarded.
        n_frames: frames announced; `n_corrupted` of them lack packets, `n_missing` packets in all.
        examples: invalid packets of the last `add`, by kind; see `Rejected`.
        headers: of the last valid packets, until the next `add`.
        pace: when frames were opened.
        is_compiled: compiled code receives frames that arrive in order, see `SteadyAssembly`.
    """

    def __init__(self, packets: Packets, sink: FrameSink, idle_time: float | None = None) -> None:
        """`idle_time` in seconds; None: 10 ms and one frame period."""
        self._packets, self._sink, self._idle_time = packets, sink, idle_time
        self.n_packets = self.n_repeated = self.n_late = 0
        self.n_frames = self.n_corrupted = self.n_missing = 0
        self.n_bad: Counter[str] = Counter()
        self.examples: Mapping[str, tuple[int, str]] = {}
        self.headers = np.zeros(0, packets.header)
        self._order = FrameOrder(packets.n_packets, has_epochs=packets.has_epochs)
        self._open: list[Frame] = []
        # A frame, in memory of its own, that may be the first of a restart, and how far its id is away.
        self._candidate: Frame | None = None
        self._candidate_place = Place.NEAR
        self.pace, self.is_compiled = FramePace(), False
        # The header of the frame that left last, if all its packets have arrived.
        self._last_header = b""
        # The open frame of the last packet, which the next ones continue as a rule.
        self._current: Frame | None = None
        # The next packets are received where they are expected. The slot of the next frame, if it is there.
        self._is_aimed, self._ahead = False, (-1, np.zeros(0, np.uint8))

    @property
    def n_restarts(self) -> int:
        """Restarts of the ids."""
        return self._order.n_restarts

    def aim(self) -> np.ndarray | None:
        """Return the memory of the next packets if they arrive in order, a row each; None: not known.

        The payloads of the next `add` must be there, those of unexpected packets too.
        """
        self._is_aimed, self._ahead = False, (-1, self._ahead[1])
        if self._packets.n_packets < MIN_AIMED and not self._can_be_steady:
            return None
        if self._current is not None:
            place = self._current.rows[self._current.next :]
        elif self._open or self._candidate is not None or (next_id := self._order.next_id) is None:
            return None
        else:
            # If another frame comes, this slot loses a frame that would be overwritten next.
            self._ahead = next_id, self._sink.begin(next_id)
            place = rows_of(self._ahead[1], self._packets)
        self._is_aimed = len(place) > 0
        return place if self._is_aimed else None

    def add(
        self, headers: np.ndarray, payloads: np.ndarray, lengths: np.ndarray, times: np.ndarray, now: float
    ) -> None:
        """Add datagrams that were received at `now`, s (monotonic).

        `payloads`: their bytes after the header, (n, `row_bytes` or more); `lengths` in bytes, with the
        header; `times`: when they reached this machine, (n or more, 2), in seconds and nanoseconds of one
        clock.
        """
        if not (
            self._continue(headers, payloads, lengths, now)
            or self._open_next(headers, payloads, lengths, times, now)
        ):
            # They are in places of other packets.
            self._add(headers, payloads.copy() if self._is_aimed else payloads, lengths, times, now)
        self._is_aimed = False

    def _add(
        self, headers: np.ndarray, payloads: np.ndarray, lengths: np.ndarray, times: np.ndarray, now: float
    ) -> None:
        """Add datagrams in any order, of any frames."""
        packets = self._packets
        rejected = packets.check(headers, lengths)
        if rejected is not None:
            self.n_bad.update(rejected.counts)
            self.examples = rejected.examples
            headers, payloads, times = (
                array[: len(rejected.good)][rejected.good] for array in (headers, payloads, times)
            )
        self.headers, n = headers, len(headers)
        if not n:
            return
        self.n_packets += n
        keys, tags, numbers = packets.keys(headers), packets.tags(headers), packets.numbers(headers)
        frame, start = None, 0
        is_other = (keys[1:] != keys[:-1]) | (tags[1:] != tags[:-1])
        starts = [0, *(np.flatnonzero(is_other) + 1).tolist()]
        found = zip(starts, keys[starts].tolist(), tags[starts].tolist(), strict=True)
        for i, (start, key, tag) in enumerate(found):
            end = starts[i + 1] if i + 1 < len(starts) else n
            frame = self._find(key, tag) or self._start(headers[start].tobytes(), times[start], now)
            self.pace.packet_at = now
            if frame is None:
                self.n_late += end - start
                continue
            frame.last_at = now
            n_repeated, n_late = frame.put(numbers[start:end], payloads[start:end])
            self.n_repeated += n_repeated
            self.n_late += n_late
            if frame.is_complete:
                self._announce_complete()
        # Batches of more than a frame never end with one, unless compiled code waits for its end.
        is_long = n >= packets.n_packets and not self._can_be_steady
        self._expect(None if is_long else frame, headers[start].tobytes())

    def _continue(self, headers: np.ndarray, payloads: np.ndarray, lengths: np.ndarray, now: float) -> bool:
        """Add packets that continue the current frame in order. Return whether they do."""
        frame = self._current
        if frame is None or not self._packets.sequence.continues(
            frame.first_header, frame.next, headers, lengths
        ):
            return False
        self.headers = headers
        self.n_packets += len(headers)
        self.pace.packet_at = frame.last_at = now
        frame.put_next(payloads, in_place=self._is_aimed)
        if frame.is_complete:
            self._announce_complete()
        return True

    def _open_next(
        self, headers: np.ndarray, payloads: np.ndarray, lengths: np.ndarray, times: np.ndarray, now: float
    ) -> bool:
        """Add packets that open a frame, in order, while none is open. Return whether they do."""
        packets, n = self._packets, len(headers)
        if self._open or self._candidate is not None or n > packets.n_packets:
            return False
        header = headers[:1].tobytes()
        if not packets.is_valid_first(header) or not packets.sequence.continues(header, 0, headers, lengths):
            return False
        frame = self._start(header, times[0], now)
        self.headers = headers
        self.n_packets += n
        self.pace.packet_at = now
        if frame is None:
            self.n_late += n
            return True
        frame.first_header, frame.last_at = header, now
        in_place = self._is_aimed and frame.identity.frame_id == self._ahead[0]
        frame.put_next(payloads, in_place=in_place and frame is not self._candidate)
        if frame.is_complete:
            self._announce_complete()
        elif frame is not self._candidate:
            self._current = frame
        return True

    @property
    def _can_be_steady(self) -> bool:
        return self.is_compiled and self._order.steady_step is not None

    def _expect(self, frame: Frame | None, header: bytes) -> None:
        """Expect that the next packets continue the frame of the last one, whose header is given."""
        if frame is None or frame.is_complete or frame is self._candidate:
            self._current = None
            return
        frame.first_header = self._packets.sequence.first(header)
        self._current = frame

    def _find(self, key: int, tag: int) -> Frame | None:
        """Return the open frame of packets. Those of another frame show that a candidate near it is late."""
        candidate = self._candidate
        if candidate is not None:
            if candidate.identity.key == key and candidate.identity.tag == tag:
                return candidate
            if self._candidate_place is Place.NEAR:
                self._discard_candidate()
        for frame in self._open:
            if frame.identity.key == key and frame.identity.tag == tag:
                return frame
        return None

    def _start(self, header: bytes, time: np.ndarray, now: float) -> Frame | None:
        """Open the frame of a packet; None if it is late."""
        seconds, nanoseconds = time.tolist()
        received = seconds * 10**9 + nanoseconds
        (identity, message), opened = self._packets.describe(header, received), self._open
        if self._candidate is not None and self._order.follows(self._candidate.identity, identity):
            self._accept_candidate()
        newest_id = opened[-1].identity.frame_id if opened else -1
        place = self._order.place(identity, newest_id, now - self.pace.packet_at)
        beside = next((frame for frame in opened if frame.identity.frame_id == identity.frame_id), None)
        if beside is not None and place is Place.NEXT:
            place = self._order.place_beside(beside.identity, identity)
        if place is Place.LATE:
            return None
        if place is not Place.NEXT:
            self._discard_candidate()
            pixels = np.empty(self._packets.n_packets * self._packets.row_bytes, np.uint8)
            self._candidate = Frame(identity, message, pixels, self._packets)
            self._candidate.header, self._candidate.received = header, received
            self._candidate_place = place
            return self._candidate
        if (
            len(opened) >= MAX_OPEN
            and self._n_in_order() == MAX_OPEN
            and identity.frame_id < opened[0].identity.frame_id
        ):
            return None  # The two frames after it have closed it.
        self._discard_candidate()
        if opened:
            self._overtake(identity)
            self._make_room(identity.frame_id)
        is_ahead = self._is_aimed and identity.frame_id == self._ahead[0]
        pixels = self._ahead[1] if is_ahead else self._sink.begin(identity.frame_id)
        frame = Frame(identity, message, pixels, self._packets)
        frame.header, frame.received = header, received
        opened.append(frame)
        if len(opened) > 1:
            opened.sort(key=lambda frame: frame.identity.frame_id)
        if self._order.continues(identity):
            self.pace.open(now)
        return frame

    def _overtake(self, identity: Identity) -> None:
        """Mark the open frames that have skipped a new one."""
        for frame in self._open:
            if frame.identity.frame_id > identity.frame_id:
                frame.is_overtaken = not self._order.follows(identity, frame.identity)
            elif self._order.follows(frame.identity, identity):
                frame.is_overtaken = False

    def _n_in_order(self) -> int:
        return sum(not frame.is_overtaken for frame in self._open)

    def _make_room(self, frame_id: int) -> None:
        """Close the frames that are two before a new one, or in its slot."""
        opened, slot = self._open, frame_id % FRAME_SLOTS
        while (
            self._n_in_order() >= MAX_OPEN
            or len(opened) > MAX_OPEN
            or any(f.identity.frame_id % FRAME_SLOTS == slot for f in opened)
        ):
            self._close_first()

    @property
    def idle_time(self) -> float:
        """Seconds after its last packet when a frame is closed."""
        return IDLE_TIME_S + self.pace.period if self._idle_time is None else self._idle_time

    def complete_in(self, soon: float) -> float | None:
        """Return the seconds until the newest open frame should be complete.

        0 if no frame is open, and the next one is expected before `soon`, s (monotonic); else None.
        """
        frame = next((frame for frame in reversed(self._open) if not frame.is_overtaken), None)
        if frame is not None:
            return self.pace.complete_in(frame.last_at, frame.n_received, len(frame.seen) - frame.n_received)
        is_expected = self._candidate is not None or self.pace.opened_at + self.pace.period < soon
        return 0.0 if is_expected else None

    @property
    def next_takes(self) -> float:
        """Seconds from the first packet of the next frame to its last one; 0 if a frame is open."""
        return 0.0 if self._open or self._candidate else self._packets.n_packets * self.pace.interval

    def _idle_at(self, frame: Frame) -> float:
        """Return when a frame is closed, if no packet of it arrives."""
        is_doubtful = self._is_doubtful(frame)
        return frame.last_at + (max(self.idle_time, DOUBT_TIME_S) if is_doubtful else self.idle_time)

    def _is_doubtful(self, frame: Frame) -> bool:
        """Return whether a frame has skipped ids, or may restart them, and no frame follows it."""
        if frame is self._candidate:
            return self._candidate_place is Place.FAR
        if self._order.continues(frame.identity):
            return False
        return not any(self._order.follows(frame.identity, other.identity) for other in self._open)

    def idle_in(self, now: float) -> float | None:
        """Return the seconds until `close_idle` has something to do; None if no frame is open."""
        idle_at = [self._idle_at(frame) for frame in (*self._open[:1], self._candidate) if frame is not None]
        return max(0.0, min(idle_at) - now) if idle_at else None

    def close_idle(self, now: float) -> None:
        """Close the frames of which no packet has arrived for the idle time.

        Call it only when all packets that had arrived at `now` were added.
        """
        if self._candidate is not None and self._idle_at(self._candidate) <= now:
            self._end_candidate()
        while self._open and self._idle_at(self._open[0]) <= now:
            self._close_first()

    def close(self) -> None:
        """Close all frames."""
        self._end_candidate()
        while self._open:
            self._close_first()

    def _end_candidate(self) -> None:
        """Accept a candidate far away, because the ids have not continued where they were, or discard it."""
        if self._candidate is not None and self._candidate_place is Place.FAR:
            self._accept_candidate()
        else:
            self._discard_candidate()

    def _accept_candidate(self) -> None:
        """Restart the ids with the candidate."""
        candidate, self._candidate = self._candidate, None
        if candidate is None:
            return
        while self._open:
            self._close_first()
        identity = candidate.identity
        self._order.restart(identity.epoch)
        frame = Frame(identity, bytes(candidate.message), self._sink.begin(identity.frame_id), self._packets)
        frame.take_over(candidate)
        frame.header, frame.received = candidate.header, candidate.received
        self._open.append(frame)
        self._announce_complete()

    def _discard_candidate(self) -> None:
        candidate, self._candidate = self._candidate, None
        if candidate is not None:
            self.n_late += candidate.n_received

    def _announce_complete(self) -> None:
        """Announce the complete frames that have none before them."""
        # One packet is no evidence.
        is_evidence = self._packets.n_packets > 1
        if self._candidate is not None and self._candidate.is_complete and is_evidence:
            self._accept_candidate()
        while (
            self._open and self._open[0].is_complete and (is_evidence or not self._is_doubtful(self._open[0]))
        ):
            self._announce(self._open.pop(0))

    def _close_first(self) -> None:
        self._announce(self._open.pop(0))
        self._announce_complete()

    def _discard_overtaken(self) -> None:
        """Discard the open frames that have skipped one which is complete, and lack packets themselves."""
        for frame in [frame for frame in self._open if frame.is_overtaken]:
            if not frame.is_complete or self._packets.n_packets == 1:
                self._open.remove(frame)
                self.n_late += frame.n_received
                if frame is self._current:
                    self._current = None

    def _announce(self, frame: Frame) -> None:
        if frame is self._current:
            self._current = None
        self.pace.announce()
        n_missing = frame.clear_missing()
        _N_MISSING.pack_into(frame.message, _N_MISSING_OFFSET, n_missing)
        self._sink.commit_bytes(frame.identity.frame_id, frame.message)
        self._order.leave(frame.identity)
        self._last_header = b"" if n_missing else frame.header
        self.n_frames += 1
        self.n_missing += n_missing
        self.n_corrupted += n_missing > 0
        if self._open and not n_missing:
            self._discard_overtaken()
