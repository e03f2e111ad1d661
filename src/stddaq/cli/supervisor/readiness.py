"""A service is ready when a process accepts connections at its endpoint."""

from __future__ import annotations

import socket

PROBE_TIMEOUT_S = 0.5


def is_listening(address: str) -> bool:
    """Return whether a process accepts connections at `ipc://PATH` or `tcp://HOST:PORT`; True if empty."""
    if not address:
        return True
    scheme, _, place = address.partition("://")
    try:
        if scheme == "ipc":
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                probe.settimeout(PROBE_TIMEOUT_S)
                probe.connect(place)
        else:
            host, _, port = place.rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), PROBE_TIMEOUT_S).close()
    except OSError:
        return False
    return True
