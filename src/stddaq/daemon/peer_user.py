"""The user at the other end of a TCP connection within this machine."""

from __future__ import annotations

import contextlib
import ipaddress
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_ESTABLISHED = "01"


def uid_of_peer(own: tuple[Any, ...], peer: tuple[Any, ...]) -> int | None:
    """Return the uid of the process that made the socket `peer`, which is connected to the socket `own`.

    The arguments are addresses as `getsockname` and `getpeername` return them. None: the connection has
    ended, or comes from another machine.
    """
    with contextlib.suppress(ValueError):
        wanted = {(_encoded(peer, wide), _encoded(own, wide)) for wide in (False, True)}
        for local, remote, state, uid in _connections():
            # A socket that its process has closed belongs to root here; it is no longer established.
            if state == _ESTABLISHED and (local, remote) in wanted:
                return uid
    return None


def _connections() -> Iterator[tuple[str, str, str, int]]:
    """Yield the local and the remote address, the state, and the user of all TCP sockets."""
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(FileNotFoundError), Path(f"/proc/self/net/{table}").open() as rows:
            next(rows)
            for row in rows:
                _, local, remote, state, _, _, _, uid, *_ = row.split()
                yield local, remote, state, int(uid)


def _encoded(address: tuple[Any, ...], wide: bool) -> str:
    """Return an address as the kernel prints it: words of 4 bytes in its own order; `wide` as IPv6.

    A client may use an IPv6 socket for an IPv4 connection.
    """
    ip = ipaddress.ip_address(address[0])
    if isinstance(ip, ipaddress.IPv4Address) and wide:
        ip = ipaddress.IPv6Address(f"::ffff:{ip}")
    packed = ip.packed
    words = [packed[i : i + 4] for i in range(0, len(packed), 4)]
    return "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words) + f":{address[1]:04X}"
