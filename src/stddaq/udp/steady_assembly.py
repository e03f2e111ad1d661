"""Frames in order that compiled code receives: where it starts, and what it has done. No I/O."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stddaq.udp.assembly import FrameAssembly, FrameSink
from stddaq.udp.frame import Frame
from stddaq.udp.packets import Packets


class SteadyAssembly(FrameAssembly):
    """Assembles the frames of one module, and lets others receive those that arrive in order.

    These ask for `steady`, `release` the frame that is open, and report frames by `add_steady` and
    `open_steady`.
    """

    def __init__(self, packets: Packets, sink: FrameSink, idle_time: float | None = None) -> None:
        super().__init__(packets, sink, idle_time)
        # Packets of the released frame, which are counted already.
        self._n_released = 0

    @property
    def steady(self) -> tuple[bytes, int, int] | None:
        """The last frame's header, the next id and the step of the ids, if frames arrive in order.

        Then all packets of the last frame have arrived, and of the open one, if there is any, the first ones;
        it is to be released.
        """
        step, next_id = self._order.steady_step, self._order.next_id
        is_steady = self._last_header and self._candidate is None
        if not is_steady or step is None or next_id is None or (self._open and not self._is_next(next_id)):
            return None
        return self._packets.sequence.first(self._last_header), next_id, step

    def _is_next(self, next_id: int) -> bool:
        """Return whether the only open frame has this id, and its first packets, with equal headers."""
        frame = self._current
        return (
            frame is not None
            and self._open == [frame]
            and frame.identity.frame_id == next_id
            and frame.next == frame.n_received
            and frame.first_header == self._packets.sequence.first(frame.header)
        )

    def release(self) -> Frame | None:
        """Return the open frame, if there is one, for `add_steady` or `open_steady`. Call it if `steady`."""
        frame, self._current = next(iter(self._open), None), None
        self._open.clear()
        self._n_released = 0 if frame is None else frame.n_received
        return frame

    def add_steady(self, headers: Sequence[bytes]) -> None:
        """Count frames that have arrived complete and in order, and were announced elsewhere.

        `headers`: of their first packets.
        """
        for header in headers:
            self._order.leave(self._packets.describe(header, 0)[0])
            self._last_header = header
        self.n_frames += len(headers)
        if headers:
            self.n_packets += len(headers) * self._packets.n_packets - self._n_released
            self._n_released = 0
            self.headers = np.frombuffer(headers[-1], self._packets.header)

    def open_steady(self, header: bytes, time: np.ndarray, n: int, now: float) -> None:
        """Open the frame that follows those of `add_steady`, whose first `n` packets are in their places.

        `header`: of its first packet, which arrived at `time`; the last one arrived at `now`.
        """
        opened_at, period = self.pace.opened_at, self.pace.period
        frame = self._start(header, time, now)
        self.pace.opened_at, self.pace.period = opened_at, period
        self.n_packets += n - self._n_released
        self._n_released = 0
        if frame is None:
            self.n_late += n
            return
        frame.first_header, frame.last_at, self._current = header, now, frame
        frame.put_next(frame.rows[:n], in_place=True)
