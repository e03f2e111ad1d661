"""The other end of an ipc socket: which process it is, and whether the two may connect.

A service trusts the sockets of those whose shared memory it accepts: this user, root, and the members of the
group that `STDDAQ_SHM_GROUP` names. Every user can bind a socket in /tmp before a service does.
"""

from __future__ import annotations

import os
import pwd
import socket
import stat
import struct
from pathlib import Path

from stddaq.dataplane.shared_segment import GROUP_VARIABLE, common_group
from stddaq.errors import GeometryError
from stddaq.text import escaped, mismatch

# How long to wait for a service at an ipc endpoint: binding needs an answer, `accepts_connections` is polled.
BIND_CHECK_TIMEOUT_S = 1.0
_POLL_TIMEOUT_S = 0.1
# struct ucred: process, user, group.
_CREDENTIALS = struct.Struct("3i")
_SO_PEERGROUPS = 59
_MAX_GROUPS_BYTES = 1024


def path_of(endpoint: str) -> Path:
    """Return the file of an ipc endpoint."""
    return Path(endpoint.removeprefix("ipc://"))


def accepts_connections(endpoint: str) -> bool:
    """Return whether a service accepts connections at an ipc endpoint."""
    try:
        return holder_of(path_of(endpoint), _POLL_TIMEOUT_S) is not None
    except OSError:
        return False


def permission_problem(endpoint: str) -> str:
    """Return why this process may not connect to an ipc endpoint, an empty string if it may. 5 us.

    libzmq reports a refused connection as one that is still to come.
    """
    path = path_of(endpoint)
    try:
        status = path.stat()
    except PermissionError:
        return _denied(endpoint, f"permission to search {path.parent}", path.parent)
    except OSError:
        return ""
    if os.access(path, os.W_OK, effective_ids=True) or not stat.S_ISSOCK(status.st_mode):
        return ""
    return _denied(endpoint, "permission to connect", path)


def _denied(endpoint: str, expected: str, path: Path) -> str:
    try:
        status = path.stat()
    except OSError:
        found = f"none (not even to look at it, as {user_name(os.geteuid())})"
    else:
        found = (
            f"none as {user_name(os.geteuid())}: {path} has owner {user_name(status.st_uid)} "
            f"and mode {stat.S_IMODE(status.st_mode):04o}"
        )
    advice = "run both services as one user, or with an umask that lets the other one write"
    return mismatch(endpoint, expected, found, advice)


def untrusted_binder(endpoint: str) -> str:
    """Return why a service must not connect to an ipc endpoint: an untrusted process has bound it. 5 us."""
    path = path_of(endpoint)
    owner = 0
    try:
        owner = path.stat().st_uid
        if owner in (0, os.getuid()):
            return ""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
            probe.connect(str(path))
            return "" if _is_trusted(probe) else untrusted(endpoint, process_at(probe))
    except (FileNotFoundError, ConnectionRefusedError, PermissionError):
        return ""  # No process has bound it, or `permission_problem` says more.
    except BlockingIOError:
        return untrusted(endpoint, f"one of {user_name(owner)} that accepts no further connections")
    except OSError:
        return ""


def untrusted(endpoint: str, process: str) -> str:
    """Return the message about an untrusted process at an ipc endpoint."""
    expected = f"a process of root, of {user_name(os.getuid())}, or of the group in {GROUP_VARIABLE}"
    return mismatch(endpoint, expected, process, "end it and remove its socket")


def untrusted_peer_of(fd: int) -> str:
    """Return which process is at the other end of a connection, empty if it is trusted. Raise `OSError`."""
    with socket.socket(fileno=os.dup(fd)) as connection:
        return "" if _is_trusted(connection) else process_at(connection)


def _is_trusted(connection: socket.socket) -> bool:
    _pid, uid, gid = _credentials(connection)
    if uid in (0, os.getuid()):
        return True
    try:
        group = common_group()
        groups = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _MAX_GROUPS_BYTES)
    except (GeometryError, OSError):
        return False
    return group is not None and group in (gid, *memoryview(groups).cast("I"))


def _credentials(connection: socket.socket) -> tuple[int, int, int]:
    return _CREDENTIALS.unpack(
        connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    )


def peer_of(fd: int) -> str:
    """Return which process is at the other end of a connection, in words. Raise `OSError`."""
    with socket.socket(fileno=os.dup(fd)) as connection:
        return process_at(connection)


def user_name(uid: int) -> str:
    """Return a user as `user psi`, or by number."""
    try:
        return f"user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"user {uid}"


def process_at(connection: socket.socket) -> str:
    """Return the process at the other end as `process 17 of user psi (std_det_writer)`."""
    pid, uid, _gid = _credentials(connection)
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        arguments = []  # It has exited, or is in another PID namespace.
    # A console script is the argument of its interpreter.
    names = [os.fsdecode(part).rpartition("/")[2] for part in arguments[:2] if not part.startswith(b"-")]
    name = next((name for name in names if not name.startswith("python")), "")
    return f"process {pid} of {user_name(uid)}" + (f" ({escaped(name)})" if name else "")


def holder_of(path: Path, timeout: float) -> str | None:
    """Return which process accepts connections at a socket file. Raise `OSError` if that is unknown."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(timeout)
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return None  # No service, or the file that a killed service has left.
        return process_at(probe)
