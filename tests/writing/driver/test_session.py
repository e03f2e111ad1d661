"""Messages for a slow client, with a connection that the test drains."""

from __future__ import annotations

from stddaq.writing.driver.session import MAX_UNSENT_BYTES, MAX_WAITING_BYTES, Connection, Session


class FakeConnection(Connection):
    def __init__(self) -> None:
        self.sent: list[str] = []
        self.n_unsent = 0
        self.is_aborted = False

    def unsent_bytes(self) -> int:
        return self.n_unsent

    def write(self, message: str) -> None:
        self.sent.append(message)

    def abort(self) -> None:
        self.is_aborted = True


def blocked() -> tuple[FakeConnection, Session]:
    connection = FakeConnection()
    connection.n_unsent = MAX_UNSENT_BYTES + 1
    return connection, Session(connection)


def test_messages_are_sent_at_once_while_the_client_keeps_up():
    connection = FakeConnection()
    session = Session(connection)
    for message in "abc":
        session.send(message, state="same")
    assert connection.sent == ["a", "b", "c"]


def test_a_slow_client_receives_all_states_and_replies_in_order_and_the_newest_progress():
    connection, session = blocked()
    for i in range(1000):
        session.send(f"recording {i}", state="recording")
    session.send("reply 1")
    session.send("reply 2")
    for i in range(1000, 2000):
        session.send(f"recording {i}", state="recording")
    session.send("saving", state="saving")
    connection.n_unsent = 0
    session.send("idle", state="idle")
    expected = ["recording 999", "reply 1", "reply 2", "recording 1999", "saving", "idle"]
    assert (connection.sent, connection.is_aborted) == (expected, False)


def test_endless_progress_needs_no_memory_and_does_not_disconnect_the_client():
    connection, session = blocked()
    message = "x" * 10_000
    for _ in range(2 * MAX_WAITING_BYTES // len(message)):
        session.send(message, state="recording")
    assert not connection.is_aborted


def test_a_client_that_sends_commands_and_never_reads_is_disconnected():
    connection, session = blocked()
    message = "x" * 10_000
    for _ in range(2 * MAX_WAITING_BYTES // len(message)):
        session.send(message)
    assert connection.is_aborted
