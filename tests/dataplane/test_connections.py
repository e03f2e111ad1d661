"""Names of the ipc sockets, which equal those of std_daq services (C++), and rules for binding them."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import zmq
from support.processes.deployment import wait_until

from stddaq.dataplane import connections, endpoints
from stddaq.dataplane.ipc_sockets import Binding, Connection
from stddaq.errors import EndpointError

OpenSocket = Callable[[int], zmq.Socket]
Bind = Callable[[zmq.Socket, str], Binding]


@pytest.fixture
def open_socket() -> Iterator[OpenSocket]:
    """Return a function that opens sockets, which are closed after the test."""
    with zmq.Context() as context, ExitStack() as opened:

        def open_socket(kind: int) -> zmq.Socket:
            return opened.enter_context(connections.open_socket(context, kind))

        yield open_socket


@pytest.fixture
def bind() -> Iterator[Bind]:
    """Binds sockets until the end of the test."""
    with ExitStack() as bound:

        def bind(zmq_socket: zmq.Socket, endpoint: str) -> Binding:
            binding = Binding(zmq_socket, endpoint)
            bound.callback(binding.close)
            return binding

        yield bind


@pytest.fixture
def ipc_directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="sd-", dir="/tmp"))
    monkeypatch.setenv("STDDAQ_IPC_DIR", str(directory))
    yield directory
    shutil.rmtree(directory)


def test_subscriptions_without_end_are_read_in_portions(open_socket: OpenSocket) -> None:
    publisher, subscriber = open_socket(zmq.XPUB), open_socket(zmq.XSUB)
    publisher.setsockopt(zmq.XPUB_VERBOSER, 1)
    publisher.bind("inproc://stream")
    subscriber.connect("inproc://stream")
    limit = connections.MAX_SUBSCRIPTIONS_READ
    for message in [b"\1"] * (limit + 7) + [b"\1topic", b"text"]:
        subscriber.send(message)
    assert connections.new_subscriptions(publisher) == limit
    assert connections.new_subscriptions(publisher) == 7
    assert connections.new_subscriptions(publisher) == 0
    # XSUB sends on the end of the last of equal subscriptions only.
    for _ in range(limit + 7):
        subscriber.send(b"\0")
    assert connections.new_subscriptions(publisher) == -1


def all_endpoints() -> list[str]:
    return [
        endpoints.metadata_stream("GF2", "image"),
        endpoints.metadata_stream("GF2", "h5bitshuffle-lz4"),
        endpoints.driver_to_writer("GF2", 0),
        endpoints.writer_to_driver("GF2", 13),
        endpoints.driver_to_writer("GF2", "meta"),
        endpoints.writer_to_driver("GF2", "meta"),
    ]


NAMES = [
    "GF2-image",
    "GF2-h5bitshuffle-lz4",
    "GF2-driver-0",
    "GF2-writer-13",
    "GF2-driver-meta",
    "GF2-writer-meta",
]


@pytest.mark.parametrize("value", [None, ""])
def test_sockets_are_in_tmp_by_default(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv("STDDAQ_IPC_DIR", raising=False)
    if value is not None:
        monkeypatch.setenv("STDDAQ_IPC_DIR", value)
    assert all_endpoints() == [f"ipc:///tmp/{name}" for name in NAMES]


def test_environment_chooses_the_directory_of_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STDDAQ_IPC_DIR", "/run/daq")
    assert all_endpoints() == [f"ipc:///run/daq/{name}" for name in NAMES]


def test_path_longer_than_a_socket_address_is_refused_with_both_lengths(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STDDAQ_IPC_DIR", "/" + "d" * 100)
    assert endpoints.ipc_endpoint("12345") == "ipc:///" + "d" * 100 + "/12345"
    with pytest.raises(EndpointError, match="expected a path of at most 107 bytes, got 108 bytes"):
        endpoints.ipc_endpoint("123456")


def test_endpoint_of_a_running_service_is_not_taken_over(
    open_socket: OpenSocket, bind: Bind, ipc_directory: Path
) -> None:
    endpoint = endpoints.metadata_stream("d", "image")
    first, second = open_socket(zmq.PUB), open_socket(zmq.PUB)
    bind(first, endpoint)

    with pytest.raises(EndpointError, match="another running service is bound there"):
        Binding(second, endpoint)

    assert sorted(ipc_directory.iterdir()) == [ipc_directory / "d-image"]


def test_endpoints_with_names_longer_than_that_of_a_lock_are_distinguished(
    open_socket: OpenSocket, bind: Bind, ipc_directory: Path
) -> None:
    first, second = (endpoints.ipc_endpoint("d" * 80 + end) for end in "12")
    bind(open_socket(zmq.PUB), first)
    bind(open_socket(zmq.PUB), second)

    (ipc_directory / ("d" * 80 + "1")).unlink()
    with pytest.raises(EndpointError, match="another running service is bound there"):
        Binding(open_socket(zmq.PUB), first)


def test_socket_file_of_a_dead_service_is_taken_over(
    open_socket: OpenSocket, bind: Bind, ipc_directory: Path
) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(ipc_directory / "d-image"))
        dead.listen()
    assert (ipc_directory / "d-image").is_socket()

    push, pull = open_socket(zmq.PUSH), open_socket(zmq.PULL)
    bind(push, endpoints.metadata_stream("d", "image"))
    pull.connect(endpoints.metadata_stream("d", "image"))
    push.send(b"alive")
    assert pull.poll(60_000)
    assert pull.recv() == b"alive"


def test_a_file_that_is_not_a_socket_is_refused(open_socket: OpenSocket, ipc_directory: Path) -> None:
    (ipc_directory / "d-image").mkdir()
    with pytest.raises(EndpointError, match="d-image: cannot be bound"):
        Binding(open_socket(zmq.PUB), endpoints.metadata_stream("d", "image"))


def test_missing_directory_is_refused(
    open_socket: OpenSocket, ipc_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STDDAQ_IPC_DIR", str(ipc_directory / "missing"))
    with pytest.raises(EndpointError, match="cannot be bound"):
        Binding(open_socket(zmq.PUB), endpoints.metadata_stream("d", "image"))


def test_closing_removes_the_file_and_still_delivers(open_socket: OpenSocket, ipc_directory: Path) -> None:
    endpoint = endpoints.driver_to_writer("d", 0)
    push, pull = open_socket(zmq.PUSH), open_socket(zmq.PULL)
    push.linger = 5000
    binding = Binding(push, endpoint)
    pull.connect(endpoint)
    push.send(b"last")
    binding.close()

    assert list(ipc_directory.iterdir()) == []
    assert pull.poll(60_000)
    assert pull.recv() == b"last"


def test_receiver_that_does_not_read_keeps_its_connection(
    open_socket: OpenSocket, bind: Bind, ipc_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With heartbeats and a receiver at its limit libzmq drops the connection, and may abort the process."""
    heartbeats_ms = (50, 200)
    monkeypatch.setattr(connections, "HEARTBEAT_INTERVAL_MS", heartbeats_ms[0])
    monkeypatch.setattr(connections, "HEARTBEAT_TIMEOUT_MS", heartbeats_ms[1])
    n_messages = 3 * connections.QUEUE_LIMIT
    endpoint = endpoints.driver_to_writer("d", 0)
    push, pull = open_socket(zmq.PUSH), open_socket(zmq.PULL)
    connections.watch_for_hanging_peers(push)
    bind(push, endpoint)
    pull.connect(endpoint)
    push.sndtimeo = pull.rcvtimeo = 20_000
    for _ in range(n_messages):
        push.send(b"image")
    # Longer than libzmq waits for the answer to a heartbeat.
    time.sleep(2 * sum(heartbeats_ms) / 1000)
    push.send(b"last")

    assert {pull.recv() for _ in range(n_messages)} == {b"image"}
    assert pull.recv() == b"last"


def test_connections_of_a_socket_are_counted_as_they_are_made_and_lost(
    open_socket: OpenSocket, bind: Bind, ipc_directory: Path
) -> None:
    push = open_socket(zmq.PUSH)
    monitor = connections.watch_connections(push)
    bind(push, endpoints.driver_to_writer("d", 0))
    counts: list[int] = []

    def seen(*expected: int) -> bool:
        counts.extend(connections.connection_counts(monitor))
        return counts == list(expected)

    pulls = [open_socket(zmq.PULL) for _ in range(3)]
    for i, pull in enumerate(pulls):
        pull.connect(endpoints.driver_to_writer("d", 0))
        wait_until(lambda n=i + 1: seen(*range(1, n + 1)), what=f"another connection in {counts}")
    # A connection that closes before the handshake is not counted.
    with pytest.raises(EndpointError):
        Binding(open_socket(zmq.PUSH), endpoints.driver_to_writer("d", 0))
    for pull in pulls:
        pull.close()
    wait_until(lambda: seen(1, 2, 3, 2, 1, 0), what=f"no connection left in {counts}")
    push.disable_monitor()
    monitor.close()


def test_loss_of_one_of_several_connections_is_reported_with_those_that_are_left(
    open_socket: OpenSocket, bind: Bind, ipc_directory: Path
) -> None:
    push = open_socket(zmq.PUSH)
    monitor = connections.watch_connections(push)
    bind(push, endpoints.driver_to_writer("d", 0))
    pulls = [open_socket(zmq.PULL) for _ in range(2)]
    changes: list[bool] = []

    def seen(*expected: bool) -> bool:
        changes.extend(connections.connection_changes(monitor))
        return changes == list(expected)

    for pull in pulls:
        pull.connect(endpoints.driver_to_writer("d", 0))
    wait_until(lambda: seen(True, True), what=f"two connections in {changes}")
    pulls[0].close()
    wait_until(lambda: seen(True, True, False, True), what=f"one that is left in {changes}")
    pulls[1].close()
    wait_until(lambda: seen(True, True, False, True, False), what=f"none that is left in {changes}")
    push.disable_monitor()
    monitor.close()


def test_removed_socket_file_comes_back_and_connections_go_on(
    open_socket: OpenSocket, bind: Bind, ipc_directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint = endpoints.metadata_stream("d", "image")
    publisher, early, late = open_socket(zmq.XPUB), open_socket(zmq.SUB), open_socket(zmq.SUB)
    publisher.setsockopt(zmq.XPUB_VERBOSE, 1)
    binding = bind(publisher, endpoint)
    for subscriber in (early, late):
        subscriber.subscribe(b"")
    early.connect(endpoint)
    assert publisher.poll(60_000)
    (ipc_directory / "d-image").unlink()
    late.connect(endpoint)
    wait_until(lambda: binding.check() or (ipc_directory / "d-image").is_socket(), what="the socket file")
    publisher.recv()
    assert publisher.poll(60_000), "the second subscriber does not connect"
    publisher.send(b"image")
    for subscriber in (early, late):
        assert subscriber.poll(60_000)
        assert subscriber.recv() == b"image"
    assert f"the ipc socket {ipc_directory / 'd-image'} was removed, bound again" in caplog.text
    binding.close()
    assert list(ipc_directory.iterdir()) == []


def test_endpoint_stays_taken_when_its_file_is_removed(
    open_socket: OpenSocket, bind: Bind, ipc_directory: Path
) -> None:
    endpoint = endpoints.writer_to_driver("d", 0)
    bind(open_socket(zmq.PUSH), endpoint)
    (ipc_directory / "d-writer-0").unlink()
    with pytest.raises(EndpointError, match=rf"is bound there, process {os.getpid()} of user \w+"):
        Binding(open_socket(zmq.PUSH), endpoint)


def test_one_name_in_two_directories_is_two_endpoints(
    open_socket: OpenSocket, bind: Bind, ipc_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bind(open_socket(zmq.PUSH), endpoints.writer_to_driver("d", 0))
    other = ipc_directory / "other"
    other.mkdir()
    monkeypatch.setenv("STDDAQ_IPC_DIR", str(other))
    bind(open_socket(zmq.PUSH), endpoints.writer_to_driver("d", 0))
    assert (other / "d-writer-0").is_socket()


def test_socket_of_a_service_that_took_the_place_of_a_removed_one_is_left_alone(
    open_socket: OpenSocket, bind: Bind, ipc_directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = ipc_directory / "d-image"
    binding = bind(open_socket(zmq.PUB), endpoints.metadata_stream("d", "image"))
    path.unlink()
    with socket.socket(socket.AF_UNIX) as cpp:  # It knows no locks.
        cpp.bind(str(path))
        cpp.listen()
        taken = path.lstat().st_ino

        def says_so() -> bool:
            binding.check()
            return "another running service is bound there" in caplog.text

        wait_until(says_so, what="the log line")
        assert path.lstat().st_ino == taken
    wait_until(lambda: binding.check() or "bound again" in caplog.text, what="the own socket file")
    assert caplog.text.count("another running service") == 1


def test_a_stranger_that_left_at_once_is_refused_with_what_it_has_sent(
    open_socket: OpenSocket, ipc_directory: Path
) -> None:
    endpoint = endpoints.driver_to_writer("d", 0)
    receiver = open_socket(zmq.PULL)
    connection = Connection(receiver, endpoint, lost_too=True)
    with contextlib.closing(connection.monitor):
        check_stranger(receiver, connection, endpoint)
        receiver.disable_monitor()


def check_stranger(receiver: zmq.Socket, connection: Connection, endpoint: str) -> None:
    with zmq.Context() as other, other.socket(zmq.PUSH) as sender:
        sender.linger = 10_000
        sender.bind(endpoint)
        sender.send(b"order")
    changes: list[bool] = []
    wait_until(lambda: changes.extend(connections.connection_changes(connection.monitor)) or False in changes)
    assert connection.receive(1) == []
    assert "got a process that has disconnected" in connection.problem
    assert not receiver.poll(0)
    assert not connection.refuse_stranger()
    wait_until(lambda: not connection.check_now() and connection._is_connected, what="the next connection")
    with zmq.Context() as other, other.socket(zmq.PUSH) as sender:
        sender.bind(endpoint)
        sender.send(b"order")
        assert receiver.poll(60_000)
        assert connection.receive(1) == [b"order"]
        assert list(connections.connection_counts(connection.monitor))[-1] == 1
