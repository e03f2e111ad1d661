"""The driver's view of a writer: matching of answers to requests, progress, timeouts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq
from support.processes.deployment import make_config, wait_until

from stddaq.dataplane import endpoints
from stddaq.dataplane.ipc_sockets import Binding
from stddaq.wire.std_daq import writer_action_pb2 as pb
from stddaq.wire.std_daq.image_metadata_pb2 import ImageMetadata
from stddaq.wire.writer_messages import encode_record_image, images_of
from stddaq.writing.driver.writer_peer import Answer, WriterConnection, WriterPeer


class FedPeer(WriterPeer):
    """A connected peer with a fake clock, which notes its answers."""

    def __init__(self, name: str = "0") -> None:
        self.now = 100.0
        super().__init__(name, clock=lambda: self.now)
        self.connections_changed(1)
        self.answers: list[tuple[int, str]] = []

    def ask(self, number: int, timeout: float = 10.0) -> None:
        self.expect_answer(number, timeout, lambda answer: self.answers.append((number, answer.reason)))

    def respond(self, **fields: object) -> bool:
        return self.receive(pb.WriterResponse(**fields).SerializeToString())  # pyright: ignore


@pytest.fixture
def peer() -> FedPeer:
    return FedPeer()


def test_answers_are_matched_by_number_in_any_order(peer: FedPeer):
    peer.ask(11)
    peer.ask(12)
    peer.respond(code=pb.SUCCESS, request=12)
    peer.respond(code=pb.FAILURE, reason="no room", request=11)
    assert peer.answers == [(12, ""), (11, "writer 0: no room")]
    assert peer.has_extensions
    assert not peer.takes_record_images


def test_a_writer_says_whether_it_takes_several_images_in_one_message(peer: FedPeer):
    peer.ask(1)
    peer.respond(code=pb.SUCCESS, request=1, takes_record_images=True)
    assert peer.takes_record_images


def test_a_failure_without_a_reason_is_still_a_failure(peer: FedPeer):
    peer.ask(1)
    peer.respond(code=pb.UNKNOWN, request=1)
    assert peer.answers == [(1, "writer 0: failed without a reason")]


def test_a_request_without_an_answer_times_out(peer: FedPeer):
    peer.ask(1, timeout=2.0)
    peer.now += 2.0
    assert peer.expire_requests() == ""
    peer.now += 0.1
    reason = "writer 0 did not answer within 2 s; it confirmed 0 of the 0 images sent to it"
    assert peer.expire_requests() == reason
    assert peer.answers == [(1, reason)]
    assert peer.expire_requests() == ""


def test_a_writer_that_makes_progress_gets_more_time(peer: FedPeer):
    peer.begin_run("run")
    peer.n_forwarded = 10
    peer.ask(1, timeout=2.0)
    for n_written in (4, 8):
        peer.now += 1.5
        peer.respond(code=pb.SUCCESS, run_id="run", progress=pb.WriterProgress(n_written=n_written))
        assert peer.expire_requests() == ""
    peer.now += 2.1
    assert "confirmed 8 of the 10 images" in peer.expire_requests()


@pytest.mark.parametrize("n_written", [[0, 0, 0], [50, 60, 70]], ids=["none", "more than it received"])
def test_reports_without_progress_do_not_extend_the_timeout(peer: FedPeer, n_written: list[int]):
    peer.begin_run("run")
    peer.n_forwarded = 0
    peer.ask(1, timeout=2.0)
    for n in n_written:
        peer.now += 0.9
        peer.respond(code=pb.SUCCESS, run_id="run", progress=pb.WriterProgress(n_written=n))
    assert peer.expire_requests()


def test_a_late_answer_never_counts_for_a_later_request(peer: FedPeer):
    peer.ask(1, timeout=1.0)
    peer.now += 1.5
    assert peer.expire_requests()
    peer.begin_run("second")
    peer.ask(2)
    peer.respond(code=pb.SUCCESS, request=1)
    peer.respond(code=pb.FAILURE, reason="mine", request=2)
    assert [number for number, _ in peer.answers] == [1, 2]
    assert peer.answers[1] == (2, "writer 0: mine")


def test_answers_of_a_cpp_writer_count_in_order(peer: FedPeer):
    peer.ask(1)
    peer.ask(2)
    peer.respond(code=pb.SUCCESS)
    peer.respond(code=pb.FAILURE, reason="full")
    assert peer.answers == [(1, ""), (2, "writer 0: full")]
    assert not peer.has_extensions


def test_a_late_answer_of_a_cpp_writer_never_counts_for_a_later_request(peer: FedPeer):
    """Such a writer answers in order, so one answer is dropped for each request that timed out."""
    peer.ask(1, timeout=1.0)
    peer.now += 1.5
    assert peer.expire_requests()
    peer.ask(2)
    peer.respond(code=pb.SUCCESS)
    peer.respond(code=pb.FAILURE, reason="the answer to the second")
    assert peer.answers[1:] == [(2, "writer 0: the answer to the second")]


def test_a_cpp_writer_that_reconnects_owes_no_late_answers(peer: FedPeer):
    peer.ask(1, timeout=1.0)
    peer.now += 1.5
    assert peer.expire_requests()
    peer.connections_changed(0)
    peer.connections_changed(1)
    peer.ask(2)
    peer.respond(code=pb.SUCCESS)
    assert peer.answers[1:] == [(2, "")]


def test_progress_of_an_earlier_run_is_ignored(peer: FedPeer):
    peer.begin_run("second")
    old = pb.WriterProgress(n_written=99, failure="old")
    assert not peer.respond(code=pb.SUCCESS, run_id="first", progress=old)
    assert peer.respond(code=pb.SUCCESS, run_id="second", progress=pb.WriterProgress(n_written=3))
    assert (peer.reported.n_written, peer.reported.failure) == (3, "")


def test_reports_add_ids_and_answers_replace_them(peer: FedPeer):
    peer.begin_run("run")
    for ids in ([1, 2], [], [5]):
        progress = pb.WriterProgress(n_overwritten=3, overwritten_ids=ids)
        peer.respond(code=pb.SUCCESS, run_id="run", progress=progress)
    assert peer.reported.overwritten_ids == [1, 2, 5]
    peer.ask(7)
    progress = pb.WriterProgress(n_overwritten=2, overwritten_ids=[1, 5])
    peer.respond(code=pb.SUCCESS, run_id="run", request=7, progress=progress)
    assert peer.answers == [(7, "")]
    assert peer.reported.overwritten_ids == [1, 5]


def test_unexpected_answers_and_malformed_messages_are_ignored(peer: FedPeer):
    peer.respond(code=pb.SUCCESS, request=77)
    assert not peer.receive(b"\xff\xff garbage")
    peer.ask(1)
    peer.respond(code=pb.SUCCESS, request=1)
    assert peer.answers == [(1, "")]


def test_a_writer_that_disconnects_fails_all_its_requests(peer: FedPeer):
    peer.begin_run("run")
    peer.n_forwarded = 5
    peer.respond(code=pb.SUCCESS, run_id="run", progress=pb.WriterProgress(n_written=3))
    peer.ask(1)
    peer.ask(2)
    reason = "writer 0 exited or hangs; it confirmed 3 of the 5 images sent to it"
    assert peer.connections_changed(0) == reason
    assert peer.answers == [(1, reason), (2, reason)]
    assert not peer.connected


def test_text_of_a_writer_is_shown_in_one_line(peer: FedPeer):
    peer.begin_run("run")
    peer.respond(code=pb.SUCCESS, run_id="run", progress=pb.WriterProgress(failure="full\n[x]"))
    assert peer.reported.failure == "full\\n[x]"


class Sockets:
    """A connection and the writer's sockets at its other end."""

    def __init__(self, context: zmq.Context) -> None:
        name: str = make_config()["detector_name"]
        self.responses = context.socket(zmq.PUSH)
        self._binding = Binding(self.responses, endpoints.writer_to_driver(name, 0))
        self.actions = context.socket(zmq.PULL)
        self.actions.connect(endpoints.driver_to_writer(name, 0))
        self.connection = WriterConnection(context, name, "0")
        self.failures: list[str] = []
        self.answers: list[Answer] = []
        wait_until(self.is_connected, what="the connection")

    def is_connected(self) -> bool:
        if failure := self.connection.check():
            self.failures.append(failure)
        return self.connection.connected

    def request(self, number: int) -> None:
        action = pb.WriterAction(confirm_last_image=pb.ConfirmLastImage(), request=number)
        self.connection.request(action, 10.0, self.answers.append)

    def close(self) -> None:
        self.connection.close()
        self._binding.close()


@pytest.fixture
def sockets(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sockets]:
    directory = Path("/tmp") / f"sd-{make_config()['detector_name']}"
    directory.mkdir()
    monkeypatch.setenv("STDDAQ_IPC_DIR", str(directory))
    context = zmq.Context()
    made = Sockets(context)
    yield made
    made.close()
    context.destroy(linger=0)
    directory.rmdir()


def test_requests_and_answers_pass_the_sockets(sockets: Sockets):
    sockets.request(5)
    action = pb.WriterAction.FromString(sockets.actions.recv())
    assert (action.request, action.WhichOneof("action")) == (5, "confirm_last_image")
    sockets.responses.send(pb.WriterResponse(code=pb.SUCCESS, request=5).SerializeToString())
    wait_until(lambda: (sockets.connection.receive_responses(), sockets.answers)[1], what="the answer")
    assert sockets.answers == [Answer("")]


def test_a_writer_that_disappears_is_noticed_once_and_receives_no_more_requests(sockets: Sockets):
    sockets.request(1)
    sockets.actions.close(linger=0)
    wait_until(lambda: not sockets.is_connected(), what="the disconnection")
    assert len(sockets.failures) == len(sockets.answers) == 1
    assert sockets.answers[0].reason == sockets.failures[0]
    sockets.request(3)
    assert sockets.answers[-1].reason == "writer 0 is not connected"


def test_a_writer_that_restarts_keeps_its_requests_and_is_not_connected_until_then(peer: FedPeer):
    peer.ask(7)
    assert not peer.receive(pb.WriterResponse(restarting=True).SerializeToString())
    assert not peer.connected
    assert peer.connections_changed(0) == ""
    assert peer.answers == []
    assert peer.connections_changed(1) == ""
    assert peer.connected
    peer.respond(code=pb.SUCCESS, request=7)
    assert peer.answers == [(7, "")]
    assert "exited" in peer.connections_changed(0)


def test_a_response_may_announce_the_restart(peer: FedPeer):
    peer.ask(7)
    peer.respond(code=pb.FAILURE, reason="full", request=7, restarting=True)
    assert peer.answers == [(7, "writer 0: full")]
    assert not peer.connected
    assert peer.is_restarting
    assert peer.connections_changed(0) == ""


IMAGES = [encode_record_image(ImageMetadata(image_id=i).SerializeToString(), 0) for i in range(3)]


def test_images_go_in_one_message_to_a_writer_that_takes_it_and_to_others_one_by_one(
    sockets: Sockets,
) -> None:
    connection = sockets.connection
    for connection.takes_record_images in (True, False):
        for image in IMAGES:
            connection.forward(image)
        assert connection.deliver() == ""
        assert connection.deliver() == ""
    connection.forward(IMAGES[0])
    sockets.request(7)
    received = [sockets.actions.recv() for _ in range(5)]
    assert [len(images_of(pb.WriterAction.FromString(message))) for message in received] == [3, 1, 1, 1, 0]
    assert received[0].endswith(b"".join(IMAGES))
    assert received[1:4] == IMAGES
    assert connection.n_forwarded == 7


def test_a_writer_that_is_a_million_images_late_does_not_keep_up(sockets: Sockets) -> None:
    connection = sockets.connection
    connection.has_extensions = True
    connection.n_forwarded, connection.reported.n_written = 1_500_000, 500_001
    connection.forward(IMAGES[0])
    assert connection.deliver() == ""
    connection.forward(IMAGES[1])
    assert connection.deliver() == (
        "writer 0 does not keep up: more than 1000000 images are to be written; "
        "use more writers, faster storage or a lower rate (`stddaq doctor CONFIG --rate HZ` measures it)"
    )


def test_images_for_a_writer_that_has_disconnected_end_the_run(sockets: Sockets) -> None:
    sockets.actions.close()
    wait_until(lambda: not sockets.is_connected(), what="the disconnect")
    sockets.connection.forward(IMAGES[0])
    assert sockets.connection.deliver() == "writer 0 disconnected"
