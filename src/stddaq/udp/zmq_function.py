"""Functions of the ZeroMQ library that pyzmq uses, for compiled code.

numba does not notice when this file changes: then remove the caches of what calls it.
"""

from __future__ import annotations

import ctypes

from llvmlite import ir
from numba import types
from numba.extending import intrinsic


def address_of(name: str) -> int:
    """Return where a function is in memory; 0: not found, pyzmq is built in another way."""
    try:
        from zmq.backend.cython import _zmq

        # A library that it was linked with is searched too.
        function = getattr(ctypes.CDLL(_zmq.__file__), name)
    except (ImportError, OSError, AttributeError):
        return 0
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def address_of_send() -> int:
    """Return where `zmq_send` is in memory; 0: not found."""
    return address_of("zmq_send")


@intrinsic
def call_zmq(typing_context, function, first, second, third, fourth):
    """Call the function with an address, which takes up to four integers or pointers and returns an int.

    Each is passed in a register of its own, where a narrower or an unused one does no harm.
    """
    del typing_context, function, first, second, third, fourth

    def generate(context, builder, signature, arguments):
        del context, signature
        address, *values = arguments
        kind = ir.FunctionType(ir.IntType(32), [ir.IntType(64)] * 4)
        return builder.call(builder.inttoptr(address, kind.as_pointer()), values)

    return types.int32(*[types.intp] * 5), generate
