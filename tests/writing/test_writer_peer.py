"""The driver's end of a writer: which answer counts for which request."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq
from support.processes.deployment import make_config, wait_until

from stddaq.dataplane import endpoints
from stddaq.wire.std_daq import writer_action_pb2 as pb
from stddaq.writing.driver.writer_peer import Answer, WriterPeer


class Pair:
    """A peer, and the sockets of the writer that it talks to."""

    def __init__(self, context: zmq.Context) -> None:
        name: str = make_config()["detector_name"]
        self.context = context
        self._endpoint = endpoints.writer_to_driver(name, 0)
        self.responses = context.socket(zmq.PUSH)
        endpoints.bind(self.responses, self._endpoint)
        self.actions = context.socket(zmq.PULL)
        self.actions.connect(endpoints.driver_to_writer(name, 0))
        self.peer = WriterPeer(context, name, "0")
        self.trouble: list[str] = []
        self.answers: list[tuple[int, Answer]] = []
        wait_until(self.connected, what="the connection")

    def connected(self) -> bool:
        self.watch()
        return self.peer.connected

    def watch(self) -> None:
        if trouble := self.peer.watch():
            self.trouble.append(trouble)

    def ask(self, number: int, patience: float = 10.0) -> None:
        action = pb.WriterAction(confirm_last_image=pb.ConfirmLastImage(), request=number)
        self.peer.ask(action, patience, lambda answer: self.answers.append((number, answer)))

    def respond(self, **fields: object) -> None:
        self.responses.send(pb.WriterResponse(**fields).SerializeToString())  # pyright: ignore

    def take(self, n_answers: int) -> list[int]:
        """The numbers of the requests that are answered, once there are so many."""

        def there() -> bool:
            self.peer.take_responses()
            return len(self.answers) >= n_answers

        wait_until(there, what=f"{n_answers} answers")
        return [number for number, _ in self.answers]

    def close(self) -> None:
        self.peer.close()
        endpoints.unbind(self.responses, self._endpoint)


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    directory = Path("/tmp") / f"sd-{make_config()['detector_name']}"
    directory.mkdir()
    monkeypatch.setenv("STDDAQ_IPC_DIR", str(directory))
    context = zmq.Context()
    made = Pair(context)
    yield made
    made.close()
    context.destroy(linger=0)
    directory.rmdir()


def test_answers_are_matched_by_number_whatever_their_order(pair: Pair):
    pair.ask(11)
    pair.ask(12)
    pair.respond(code=pb.SUCCESS, request=12)
    pair.respond(code=pb.FAILURE, reason="no room", request=11)
    assert pair.take(2) == [12, 11]
    assert [answer.reason for _, answer in pair.answers] == ["", "writer 0: no room"]
    assert pair.peer.is_ours


def test_late_answer_of_an_earlier_request_never_counts_for_a_later_one(pair: Pair):
    pair.ask(1, patience=0.05)
    wait_until(lambda: pair.watch() or pair.answers, what="the end of patience")
    assert "did not answer within 0.05 s" in pair.answers[0][1].reason
    pair.peer.begin_run("second")
    pair.ask(2)
    pair.respond(code=pb.SUCCESS, request=1)
    pair.respond(code=pb.FAILURE, reason="mine", request=2)
    assert pair.take(2) == [1, 2]
    assert pair.answers[1][1].reason == "writer 0: mine"


def test_plain_answers_of_a_foreign_writer_count_in_order(pair: Pair):
    pair.ask(1)
    pair.ask(2)
    pair.respond(code=pb.SUCCESS)
    pair.respond(code=pb.FAILURE, reason="full")
    assert pair.take(2) == [1, 2]
    assert [answer.reason for _, answer in pair.answers] == ["", "writer 0: full"]
    assert not pair.peer.is_ours


def test_late_plain_answer_of_a_foreign_writer_never_counts_for_a_later_request(pair: Pair):
    """It gives no numbers: as many answers as were given up are passed over, for it answers in order."""
    pair.ask(1, patience=0.05)
    wait_until(lambda: pair.watch() or pair.answers, what="the end of patience")
    pair.ask(2)
    pair.respond(code=pb.SUCCESS)
    pair.respond(code=pb.FAILURE, reason="the answer to the second")
    assert pair.take(2) == [1, 2]
    assert pair.answers[1][1].reason == "writer 0: the answer to the second"


def test_progress_of_an_earlier_run_is_ignored(pair: Pair):
    pair.peer.begin_run("second")
    pair.ask(5)
    pair.respond(code=pb.SUCCESS, run_id="first", progress=pb.WriterProgress(n_written=99, failure="old"))
    pair.respond(code=pb.SUCCESS, run_id="second", progress=pb.WriterProgress(n_written=3))
    pair.respond(code=pb.SUCCESS, request=5)
    pair.take(1)
    assert (pair.peer.reported.n_written, pair.peer.reported.failure) == (3, "")


def test_reports_add_ids_and_answers_replace_them(pair: Pair):
    pair.peer.begin_run("run")
    for ids in ([1, 2], [], [5]):
        progress = pb.WriterProgress(n_overwritten=3, overwritten_ids=ids)
        pair.respond(code=pb.SUCCESS, run_id="run", progress=progress)
    wait_until(lambda: (pair.peer.take_responses(), len(pair.peer.reported.overwritten_ids) == 3)[1])
    assert pair.peer.reported.overwritten_ids == [1, 2, 5]
    pair.ask(7)
    progress = pb.WriterProgress(n_overwritten=2, overwritten_ids=[1, 5])
    pair.respond(code=pb.SUCCESS, run_id="run", request=7, progress=progress)
    pair.take(1)
    assert pair.peer.reported.overwritten_ids == [1, 5]


def test_answers_that_nobody_asked_for_and_garbage_are_ignored(pair: Pair):
    pair.respond(code=pb.SUCCESS, request=77)
    pair.responses.send(b"\xff\xff garbage")
    pair.ask(1)
    pair.respond(code=pb.SUCCESS, request=1)
    assert pair.take(1) == [1]


def test_a_writer_that_vanishes_ends_all_its_requests(pair: Pair):
    pair.ask(1)
    pair.ask(2)
    pair.actions.close(linger=0)
    wait_until(lambda: pair.watch() or pair.answers, what="the disconnection")
    assert [number for number, _ in pair.answers] == [1, 2]
    assert all("writer 0" in answer.reason for _, answer in pair.answers)
    assert len(pair.trouble) == 1
    pair.ask(3)
    assert pair.answers[-1][1].reason == "writer 0 is not connected"
