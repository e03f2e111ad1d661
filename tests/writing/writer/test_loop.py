"""A writer's loop with a driver's sockets and a fake recorder: requests, responses, reports."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from support.processes.deployment import make_config, wait_until

from stddaq.config import DetectorConfig
from stddaq.daemon.main import StopRequest
from stddaq.daemon.metrics import Registry
from stddaq.daemon.replacement import HandedOver
from stddaq.daemon.statistics import Period
from stddaq.dataplane import connections, endpoints
from stddaq.errors import StdDaqError
from stddaq.files.hdf5_calls import hdf5_calls
from stddaq.wire.std_daq import writer_action_pb2 as pb
from stddaq.writing.writer import driver_presence, loop
from stddaq.writing.writer.loop import MAX_CPP_REASON_BYTES, WriterLoop
from stddaq.writing.writer.recorder import Recorder, RecordImages

CONFIG = DetectorConfig.parse(make_config())
TIMEOUT_MS = 60_000


class FakeRecorder(Recorder):
    """Notes the calls of the loop; an image is written when it is flushed."""

    batch_limit = 10

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.batches: list[list[int]] = []
        self.n_recorded = self.n_written = 0
        self.failure = ""
        self.read_until = 0.0
        self.open_error: Exception | None = None

    @property
    def ids(self) -> list[int]:
        """Return the ids of all recorded images."""
        return [image_id for batch in self.batches for image_id in batch]

    def prepare(self) -> None:
        self.calls.append("prepare")

    def open(self, action: pb.CreateWriterFile) -> None:
        if self.open_error:
            raise self.open_error
        self.n_recorded = self.n_written = 0
        self._path = Path(action.path)
        self._path.touch()
        self.calls.append(f"open {action.run_id}")

    def record(self, images: RecordImages) -> None:
        self.batches.append([image.image_metadata.image_id for image in images])
        self.n_recorded += len(images)

    def caught_up(self, until: float) -> None:
        self.read_until = until

    def settle(self) -> None:
        self.calls.append("settle")

    def flush(self) -> bool:
        self.n_written = self.n_recorded
        return False

    def show_alive(self) -> bool:
        return True

    def close(self, *, discard_if_empty: bool = False) -> None:
        self.flush()
        if discard_if_empty and not self.n_written:
            self._path.unlink()
        self.calls.append("close")

    def progress(self, reported: tuple[int, int] = (0, 0)) -> pb.WriterProgress:
        return pb.WriterProgress(n_written=self.n_written, failure=self.failure)

    def register(self, registry: Registry) -> None:
        pass

    def statistics(self, period: Period) -> dict[str, object]:
        return {}

    def end_period(self) -> None:
        pass


class FakeDriver:
    """The driver's two sockets; `connect` and `disconnect` apply to the one that sends requests."""

    def __init__(self) -> None:
        self.context = zmq.Context()
        self.responses = connections.open_socket(self.context, zmq.PULL)
        self.responses.rcvtimeo = TIMEOUT_MS
        self.responses.connect(endpoints.writer_to_driver(CONFIG.detector_name, 0))
        self.actions: zmq.Socket | None = None
        self.connect()

    def connect(self) -> None:
        self.actions = connections.open_socket(self.context, zmq.PUSH)
        self.actions.linger = 1000
        self.actions.sndtimeo = TIMEOUT_MS
        self.actions.bind(endpoints.driver_to_writer(CONFIG.detector_name, 0))

    def disconnect(self) -> None:
        assert self.actions
        self.actions.close()

    def send(self, **action: Any) -> None:
        assert self.actions
        self.actions.send(pb.WriterAction(**action).SerializeToString())

    def create(self, path: Path, request: int = 1, run_id: str = "run") -> None:
        self.send(create_file=pb.CreateWriterFile(path=str(path), run_id=run_id), request=request)

    def record(self, *image_ids: int) -> None:
        for image_id in image_ids:
            self.send(record_image=pb.RecordImage(image_metadata={"image_id": image_id}))

    def record_together(self, *image_ids: int) -> None:
        images = [pb.RecordImage(image_metadata={"image_id": image_id}) for image_id in image_ids]
        self.send(record_images=pb.RecordImages(images=images))

    def receive(self) -> pb.WriterResponse:
        return pb.WriterResponse.FromString(self.responses.recv())

    def response(self, request: int) -> pb.WriterResponse:
        """Return the response to a request; skip progress reports."""
        while (response := self.receive()).request != request:
            pass
        return response

    def close(self) -> None:
        self.context.destroy(linger=0)


@pytest.fixture
def recorder() -> FakeRecorder:
    return FakeRecorder()


@pytest.fixture
def stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorder: FakeRecorder) -> Iterator[StopRequest]:
    """Run a loop. Yield the request that stops it."""
    monkeypatch.setenv("STDDAQ_IPC_DIR", str(tmp_path))
    stop = StopRequest()
    writer = WriterLoop(CONFIG, 0, recorder, Registry(CONFIG.detector_name, "std_det_writer", "0"))
    thread = threading.Thread(target=writer.serve, args=(stop,))
    thread.start()
    yield stop
    stop.request()
    thread.join()
    stop.close()


@pytest.fixture
def driver(stop: StopRequest) -> Iterator[FakeDriver]:
    driver = FakeDriver()
    yield driver
    driver.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "raw.h5"


def test_a_run_is_created_recorded_confirmed_and_closed(
    driver: FakeDriver, recorder: FakeRecorder, path: Path
):
    driver.create(path, request=1)
    driver.record(0, 1, 2)
    driver.send(confirm_last_image=pb.ConfirmLastImage(), request=2)
    driver.send(close_file=pb.CloseWriterFile(), request=3)
    confirmed, closed = driver.response(2), driver.response(3)
    assert recorder.calls == ["prepare", "open run", "settle", "close"]
    assert recorder.ids == [0, 1, 2]
    assert (confirmed.code, confirmed.run_id, confirmed.progress.n_written) == (pb.SUCCESS, "run", 3)
    assert (closed.code, closed.run_id, closed.progress.n_written) == (pb.SUCCESS, "run", 3)


def test_images_of_a_run_without_an_open_file_are_ignored(
    driver: FakeDriver, recorder: FakeRecorder, path: Path
):
    driver.record(7)
    driver.create(path, request=1)
    driver.record(0)
    driver.send(close_file=pb.CloseWriterFile(), request=2)
    driver.response(2)
    driver.record(8)
    driver.send(close_file=pb.CloseWriterFile(), request=3)
    driver.response(3)
    assert recorder.batches == [[0]]
    assert recorder.calls.count("close") == 1


def test_the_recorder_learns_until_when_the_queue_was_read(
    driver: FakeDriver, recorder: FakeRecorder, path: Path
):
    driver.create(path)
    driver.response(1)
    driver.record(0, 1)
    wait_until(lambda: recorder.ids == [0, 1], what="the images")
    now = time.monotonic()
    wait_until(lambda: recorder.read_until > now, what="another look at the queue")


@pytest.mark.parametrize("n_together", [None, 1, 7, 35])
def test_no_batch_is_larger_than_the_recorder_accepts(
    driver: FakeDriver, recorder: FakeRecorder, path: Path, n_together: int | None
):
    driver.create(path)
    if n_together is None:
        driver.record(*range(35))
    else:
        for first in range(0, 35, n_together):
            driver.record_together(*range(first, first + n_together))
    driver.send(confirm_last_image=pb.ConfirmLastImage(), request=2)
    driver.response(2)
    assert recorder.ids == list(range(35))
    assert max(map(len, recorder.batches)) <= recorder.batch_limit


def test_a_driver_that_numbers_its_requests_is_told_that_images_may_come_together(
    driver: FakeDriver, path: Path
):
    driver.create(path)
    assert driver.response(1).takes_record_images


def test_progress_is_reported_without_a_request(driver: FakeDriver, path: Path):
    driver.create(path)
    driver.response(1)
    driver.record(0, 1)
    while (report := driver.receive()).progress.n_written < 2:
        pass
    assert (report.request, report.run_id) == (0, "run")


def test_a_driver_that_numbers_no_requests_receives_one_response_per_request_only(
    driver: FakeDriver, path: Path
):
    """The std_daq driver (C++) treats every message as a response."""
    driver.create(path, request=0)
    driver.record(0, 1)
    driver.send(confirm_last_image=pb.ConfirmLastImage())
    driver.send(close_file=pb.CloseWriterFile())
    responses = [driver.receive() for _ in range(3)]
    assert responses == [pb.WriterResponse(code=pb.SUCCESS)] * 3
    assert not driver.responses.poll(20)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (FileExistsError(17, "File exists", "/data/raw.h5"), "/data/raw.h5: File exists"),
        (StdDaqError("no such detector"), "no such detector"),
        (OSError(), "OSError"),
    ],
)
def test_a_failed_request_is_answered_with_the_reason(
    driver: FakeDriver, recorder: FakeRecorder, path: Path, error: Exception, reason: str
):
    recorder.open_error = error
    driver.create(path)
    response = driver.response(1)
    assert (response.code, response.reason) == (pb.FAILURE, reason)
    driver.record(0)
    driver.send(close_file=pb.CloseWriterFile(), request=2)
    assert driver.response(2).code == pb.SUCCESS
    assert recorder.batches == []


def test_a_long_reason_fits_the_buffer_of_the_cpp_driver_and_keeps_its_end(
    driver: FakeDriver, recorder: FakeRecorder, path: Path
):
    recorder.open_error = StdDaqError("ü" * 500 + ": no space left")
    driver.create(path, request=0)
    reason = driver.receive().reason
    assert len(reason.encode()) <= MAX_CPP_REASON_BYTES
    assert reason.startswith("...ü")
    assert reason.endswith(": no space left")


def test_a_driver_that_numbers_no_requests_receives_the_failure_of_its_images(
    driver: FakeDriver, recorder: FakeRecorder, path: Path
):
    driver.create(path, request=0)
    driver.receive()
    recorder.failure = "disk full"
    driver.send(confirm_last_image=pb.ConfirmLastImage())
    assert driver.receive() == pb.WriterResponse(code=pb.FAILURE, reason="disk full")


@pytest.mark.parametrize("discard_if_empty", [True, False])
@pytest.mark.parametrize("n_images", [0, 1])
def test_only_an_empty_file_is_discarded_and_only_on_request(
    driver: FakeDriver, path: Path, discard_if_empty: bool, n_images: int
):
    driver.create(path)
    driver.record(*range(n_images))
    driver.send(close_file=pb.CloseWriterFile(discard_if_empty=discard_if_empty), request=2)
    driver.response(2)
    assert path.exists() == bool(n_images or not discard_if_empty)


def test_a_master_file_that_cannot_be_created_is_a_failure(driver: FakeDriver, path: Path):
    master = pb.CreateMasterFile(path=str(path.with_name("master.h5")), raw_files=["raw.h5"])
    driver.send(create_master_file=master, request=1)
    response = driver.response(1)
    assert response.code == pb.FAILURE
    assert response.reason == "raw.h5: is missing, no such file"


def test_messages_that_are_not_requests_get_no_response(driver: FakeDriver, path: Path):
    assert driver.actions
    driver.actions.send(b"\xff\xff")
    driver.record_together()
    driver.send(request=1)
    driver.create(path, request=2)
    assert driver.receive().request == 2


def test_the_next_run_closes_a_file_that_was_left_open(
    driver: FakeDriver, recorder: FakeRecorder, path: Path
):
    driver.create(path, request=1, run_id="first")
    driver.create(path.with_name("second.h5"), request=2, run_id="second")
    assert driver.response(2).run_id == "second"
    assert recorder.calls == ["prepare", "open first", "close", "prepare", "open second"]


def test_the_file_of_a_driver_that_does_not_return_is_closed(
    monkeypatch: pytest.MonkeyPatch, driver: FakeDriver, recorder: FakeRecorder, path: Path
):
    for module in (driver_presence, loop):
        monkeypatch.setattr(module, "DRIVER_ABSENCE_S", 0.01)
    driver.create(path, request=0)
    driver.receive()
    driver.disconnect()
    wait_until(lambda: "close" in recorder.calls, what="the file to be closed")


def test_a_driver_that_numbers_its_requests_and_reconnects_finds_its_file_closed(
    driver: FakeDriver, recorder: FakeRecorder, path: Path
):
    """Such a driver has removed this writer from its run."""
    driver.create(path)
    driver.response(1)
    driver.disconnect()
    driver.connect()
    wait_until(lambda: "close" in recorder.calls, what="the file to be closed")


def test_stopping_carries_out_received_requests_and_closes_the_file(
    stop: StopRequest, driver: FakeDriver, recorder: FakeRecorder, path: Path
):
    driver.create(path)
    driver.response(1)
    stop.request()
    wait_until(lambda: "close" in recorder.calls, what="the file to be closed")
    socket = Path(endpoints.writer_to_driver(CONFIG.detector_name, 0).removeprefix("ipc://"))
    wait_until(lambda: not socket.exists(), what="the end of the socket")


class Successor:
    """A loop whose process HDF5 has failed in, and what it hands over."""

    def __init__(self, recorder: FakeRecorder) -> None:
        self.stop = StopRequest()
        self.handed_over: HandedOver | None = None
        registry = Registry(CONFIG.detector_name, "std_det_writer", "0")
        self._writer = WriterLoop(CONFIG, 0, recorder, registry)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        self.handed_over = self._writer.serve(self.stop)

    def end(self, stop: bool = False) -> HandedOver | None:
        if stop:
            self.stop.request()
        self._thread.join(TIMEOUT_MS / 1000)
        assert not self._thread.is_alive()
        self.stop.close()
        return self.handed_over


@pytest.fixture
def failing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorder: FakeRecorder) -> Successor:
    monkeypatch.setenv("STDDAQ_IPC_DIR", str(tmp_path))
    monkeypatch.setattr(hdf5_calls, "failed", False)
    return Successor(recorder)


def test_a_process_in_which_hdf5_failed_serves_no_further_request(
    failing: Successor, monkeypatch: pytest.MonkeyPatch, path: Path
):
    driver = FakeDriver()
    driver.create(path, request=1)
    driver.response(1)
    monkeypatch.setattr(hdf5_calls, "failed", True)
    driver.record(0)
    driver.send(close_file=pb.CloseWriterFile(), request=2)
    answer = driver.response(2)
    assert answer.restarting
    assert answer.progress.n_written == 1
    assert failing.end() == HandedOver([], [])
    driver.close()


def test_a_cpp_driver_gets_its_answer_from_the_next_process(
    failing: Successor, recorder: FakeRecorder, monkeypatch: pytest.MonkeyPatch, path: Path
):
    driver = FakeDriver()
    driver.create(path, request=0)
    driver.receive()
    monkeypatch.setattr(hdf5_calls, "failed", True)
    driver.send(close_file=pb.CloseWriterFile())
    handed_over = failing.end()
    assert handed_over is not None
    assert len(handed_over.answers) == 1
    monkeypatch.setattr(hdf5_calls, "failed", False)
    monkeypatch.setattr(loop, "handed_over", lambda: handed_over)
    successor = Successor(recorder)
    assert driver.receive().code == pb.SUCCESS
    assert successor.end(stop=True) is None
    driver.close()


def test_a_request_that_finds_an_unfit_process_is_carried_out_by_the_next_one(
    failing: Successor, recorder: FakeRecorder, monkeypatch: pytest.MonkeyPatch, path: Path
):
    driver = FakeDriver()
    driver.create(path, request=1, run_id="first")
    driver.response(1)
    monkeypatch.setattr(hdf5_calls, "failed", True)
    driver.create(path, request=2, run_id="second")
    while not driver.receive().restarting:
        pass
    handed_over = failing.end()
    assert handed_over is not None
    monkeypatch.setattr(hdf5_calls, "failed", False)
    monkeypatch.setattr(loop, "handed_over", lambda: handed_over)
    successor = Successor(recorder)
    assert driver.response(2).code == pb.SUCCESS
    successor.end(stop=True)
    assert recorder.calls == ["prepare", "open first", "close", "prepare", "open second", "close"]
    driver.close()
