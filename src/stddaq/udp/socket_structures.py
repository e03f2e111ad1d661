"""The structures of recvmmsg(2) and sendmmsg(2) as numpy arrays, for many datagrams with one system call."""

from __future__ import annotations

import numpy as np

IOVEC = np.dtype([("base", "u8"), ("bytes", "u8")])
# struct mmsghdr of 64-bit Linux.
MESSAGE = np.dtype(
    {
        "names": ["name", "name_bytes", "iovecs", "n_iovecs", "control", "control_bytes", "flags", "bytes"],
        "formats": ["u8", "u4", "u8", "u8", "u8", "u8", "i4", "u4"],
        "offsets": [0, 8, 16, 24, 32, 40, 48, 56],
        "itemsize": 64,
    }
)
# struct sockaddr_in.
ADDRESS = np.dtype([("family", "u2"), ("port", ">u2"), ("address", "4u1"), ("zero", "8u1")])


def addresses(array: np.ndarray) -> np.ndarray:
    """Return the addresses in memory of the elements of the first axis."""
    return array.ctypes.data + array.strides[0] * np.arange(len(array), dtype=np.uint64)
