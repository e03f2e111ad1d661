"""Whatever a writer answers, the driver ends the run, reports why, and remains usable."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st
from support.processes.recording import Background, MakeRig, assert_saved, images_of
from support.tools.fuzzing import U64, Health, examples, mutated

from stddaq.dataplane.connections import open_socket
from stddaq.dataplane.endpoints import driver_to_writer, writer_to_driver
from stddaq.dataplane.ipc_sockets import Binding
from stddaq.wire.std_daq import writer_action_pb2 as pb

# Placeholders for values that are known only when the answer is sent.
THIS_REQUEST, THIS_RUN = 2**64 - 7, "this run"
TEXTS = st.one_of(st.text(max_size=20), st.sampled_from(["\0", "\n[x] y", "x" * 5000, "\u2028", "\x1b[2J"]))
IDS = st.lists(U64, max_size=5)


def responses() -> st.SearchStrategy[pb.WriterResponse]:
    """Generate responses with any values, among them the right ones."""
    progress = st.builds(
        pb.WriterProgress,
        n_written=st.integers(0, 3) | U64,
        n_overwritten=st.integers(0, 3) | U64,
        n_failed=st.integers(0, 3) | U64,
        overwritten_ids=IDS,
        failed_ids=IDS,
        failure=st.just("") | TEXTS,
    )
    return st.builds(
        pb.WriterResponse,
        code=st.sampled_from([pb.SUCCESS, pb.SUCCESS, pb.FAILURE, pb.UNKNOWN, 77, -1]),
        reason=TEXTS,
        request=st.sampled_from([THIS_REQUEST, THIS_REQUEST, 0, 1]) | U64,
        progress=st.none() | progress,
        run_id=st.sampled_from([THIS_RUN, THIS_RUN, "", "other"]) | TEXTS,
    )


Answers = Sequence[pb.WriterResponse | bytes]
SERIALIZED = responses().map(lambda response: response.SerializeToString())
ANSWERS = st.lists(
    st.lists(responses() | mutated(SERIALIZED) | st.binary(max_size=40), max_size=3), min_size=5, max_size=5
)


class LyingWriter(Background):
    """Answers the k-th request of a run with the k-th of `answers`; a context manager."""

    def __init__(self, detector_name: str) -> None:
        super().__init__()
        self.answers: Sequence[Answers] = []
        self._n_requests = 0
        self._run_id = ""
        self._context = zmq.Context()
        self._responses = open_socket(self._context, zmq.PUSH)
        self._actions = open_socket(self._context, zmq.PULL)
        self._endpoint = writer_to_driver(detector_name, 0)
        self._binding = Binding(self._responses, self._endpoint)
        self._actions.connect(driver_to_writer(detector_name, 0))

    def _work(self) -> None:
        while not self._ended.is_set():
            if not self._actions.poll(50):
                continue
            action = pb.WriterAction.FromString(self._actions.recv())
            kind = action.WhichOneof("action")
            if kind == "create_file":
                self._run_id, self._n_requests = action.create_file.run_id, 0
                Path(action.create_file.path).touch()
            if kind not in ("record_image", "record_images"):
                self._answer(action.request)

    def _answer(self, request: int) -> None:
        answers = self.answers[self._n_requests] if self._n_requests < len(self.answers) else []
        self._n_requests += 1
        for answer in answers:
            if isinstance(answer, bytes):
                self._responses.send(answer)
                continue
            filled = pb.WriterResponse()
            filled.CopyFrom(answer)
            filled.request = request if answer.request == THIS_REQUEST else answer.request
            filled.run_id = self._run_id if answer.run_id == THIS_RUN else answer.run_id
            self._responses.send(filled.SerializeToString())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self._binding.close()
        self._context.destroy(linger=0)


@pytest.mark.slow
def test_the_run_ends_and_the_driver_is_usable_whatever_a_writer_answers(make_rig: MakeRig):
    rig = make_rig(driver=["--writer-timeout", 0.5], writers=False, number_of_writers=1)
    rig.wait_for_subscription()
    health = Health([rig.driver])

    def run_against(answers: Sequence[Answers], n_image: int) -> None:
        writer.answers = answers
        rig.client.start(rig.directory, n_image=n_image, overwrite=True)
        deadline = time.monotonic() + 60
        published = False
        while (status := rig.client.status()).status != "idle":
            assert time.monotonic() < deadline, status
            if status.status == "waiting_for_first_image" and not published:
                rig.publish(images_of(range(n_image)))
                published = True
        result = rig.client.last_result()
        assert result
        assert result["outcome"] in ("file_saved", "error")
        if result["outcome"] == "error":
            assert result["reason"].isprintable()
            assert 0 < len(result["reason"]) < 5000
        health.check()

    with LyingWriter(rig.deployment.detector_name) as writer:

        @examples(12)
        @given(ANSWERS, st.sampled_from([0, 2]))
        def run_ends(answers: Sequence[Answers], n_image: int) -> None:
            run_against(answers, n_image)

        run_ends()
        # A number too large for the driver's counters once left it busy for ever.
        absurd = pb.WriterResponse(
            code=pb.SUCCESS,
            request=THIS_REQUEST,
            run_id=THIS_RUN,
            progress=pb.WriterProgress(n_written=2**64 - 1, failed_ids=[0]),
        )
        run_against([[absurd]] * 5, 2)
    rig.start_writers()
    images = images_of(range(30))
    assert_saved(rig.record(images, file_prefix="after"), images)
    health.check()
