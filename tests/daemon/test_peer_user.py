"""The user of a peer, with sockets of other users."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from stddaq.daemon.peer_user import uid_of_peer

NOBODY = 65534
CONNECT = """
import os, socket, sys
if os.geteuid() == 0:
    os.setuid({uid})
family = socket.AF_INET6 if {wide} else socket.AF_INET
connection = socket.socket(family)
connection.connect(({host!r}, {port}))
sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("listens_at", "wide", "host"),
    [
        ("127.0.0.1", False, "127.0.0.1"),
        ("127.0.0.1", True, "::ffff:127.0.0.1"),
        ("::1", True, "::1"),
    ],
)
def test_uid_is_that_of_the_process_that_connects(listens_at: str, wide: bool, host: str) -> None:
    family = socket.AF_INET6 if ":" in listens_at else socket.AF_INET
    with socket.create_server((listens_at, 0), family=family) as server:
        server.settimeout(20)
        program = CONNECT.format(uid=NOBODY, wide=wide, host=host, port=server.getsockname()[1])
        with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE) as client:
            connection, _ = server.accept()
            with connection:
                own, peer = connection.getsockname(), connection.getpeername()
                assert uid_of_peer(own, peer) == (NOBODY if os.geteuid() == 0 else os.geteuid())
                assert client.stdin
                client.stdin.close()
                client.wait(20)
                # The kernel shows the socket of a process that has ended as one of root.
                assert uid_of_peer(own, peer) is None


def test_connection_that_does_not_exist_has_no_user() -> None:
    assert uid_of_peer(("127.0.0.1", 1), ("127.0.0.1", 2)) is None
    assert uid_of_peer(("not an address", 1), ("127.0.0.1", 2)) is None
