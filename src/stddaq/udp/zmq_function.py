"""The function `zmq_send` of the ZeroMQ library that pyzmq uses, for compiled code."""

from __future__ import annotations

import ctypes


def address_of_send() -> int:
    """Return where it is in memory; 0: not found, pyzmq is built in another way."""
    try:
        from zmq.backend.cython import _zmq

        # A library that it was linked with is searched too.
        send = ctypes.CDLL(_zmq.__file__).zmq_send
    except (ImportError, OSError, AttributeError):
        return 0
    return ctypes.cast(send, ctypes.c_void_p).value or 0
