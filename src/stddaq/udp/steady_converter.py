"""Frames of a receiver of stddaq, converted by compiled code until anything else is to be handled.

The rules are those of `Converter`, which handles what these loops leave to it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import zmq

from stddaq.udp import kernels
from stddaq.udp.conversion import Conversion
from stddaq.udp.frame_message import FRAME_MESSAGE_BYTES
from stddaq.udp.frame_ring import FrameMemory
from stddaq.udp.zmq_function import address_of

_FUNCTIONS = ("zmq_recv", "zmq_send", "zmq_poll", "zmq_getsockopt")
_NS = 1e9


class SteadyConverter:
    """The compiled loop of a converter, and what it has done.

    Attributes:
        is_possible: the functions of ZeroMQ were found.
    """

    def __init__(
        self,
        conversion: Conversion,
        part: int,
        link_set: int | None = None,
        sockets: Sequence[int] = (0, 0, 0),
    ) -> None:
        """`part`, `link_set`: of the module.

        `sockets`: addresses of the ZeroMQ sockets of frames, of their monitor, and of converted frames.
        """
        self._conversion, self._sockets = conversion, np.array(sockets, np.int64)
        self._functions = np.array([address_of(name) for name in _FUNCTIONS], np.int64)
        self.is_possible = bool(self._functions.all())
        self._state = np.zeros(kernels.N_STATES, np.int64)
        self._state[kernels.PART] = part
        self._state[kernels.LINK_SET] = -1 if link_set is None else link_set
        self._polled = np.array([sockets[0], zmq.POLLIN << 32, 0, 0], np.int64)
        self._message = np.zeros(kernels.MESSAGE_WORDS, np.uint64)
        self._scratch, self._reason = np.zeros(2, np.int64), kernels.DUE

    def convert(self, frames: FrameMemory, images: FrameMemory, mark: int, due: float, stop: int) -> None:
        """Convert frames as they are announced, until something else is to be done.

        That is the case at `due`, in s (monotonic), when the descriptor `stop` is readable, and when there is
        a message in `received` or `unsent`. `mark` is the last one.
        """
        state = self._state
        state[kernels.MARK], state[kernels.DUE_AT] = mark, int(due * _NS)
        state[kernels.N_CONVERTED] = state[kernels.N_OVERWRITTEN] = 0
        self._polled[3] = stop | zmq.POLLIN << 32
        loop = kernels.FrameLoop(
            state,
            self._functions,
            self._sockets,
            self._polled,
            self._message,
            frames.cursor,
            images.cursor,
            self._scratch,
        )
        self._reason = self._conversion.convert_frames(loop, frames.slots, images.slots)

    @property
    def mark(self) -> int:
        """The last mark of the last call."""
        return int(self._state[kernels.MARK])

    @property
    def counts(self) -> tuple[int, int]:
        """Frames that the last call has converted, and those that were overwritten."""
        return int(self._state[kernels.N_CONVERTED]), int(self._state[kernels.N_OVERWRITTEN])

    @property
    def received(self) -> bytes | None:
        """A message that is left to others, if there is one."""
        if self._reason != kernels.RECEIVED:
            return None
        # One that does not fit was cut, and is still too long.
        return self._message.tobytes()[: self._state[kernels.N_BYTES]]

    @property
    def unsent(self) -> bytes | None:
        """The message of a converted frame that could not be sent, if there is one."""
        return self._message.tobytes()[:FRAME_MESSAGE_BYTES] if self._reason == kernels.UNSENT else None
