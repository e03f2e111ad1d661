"""Plans in a queue: bluesky-queueserver runs, pauses and aborts them, and destroys their environment."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from support.processes.deployment import Deployment
from support.processes.detector_queue import DetectorQueue
from support.tools.queue_transcript import PAGE, page_of

pytestmark = [pytest.mark.external, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def queue(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DetectorQueue]:
    """Return a queue for all tests, because its processes start slowly. Its environment is open."""
    work = tmp_path_factory.mktemp("queue")
    files = work / "files"
    files.mkdir()
    with ExitStack() as close, pytest.MonkeyPatch.context() as monkeypatch:
        deployment = Deployment(work)
        close.callback(deployment.close)
        monkeypatch.setenv("STDDAQ_IPC_DIR", str(deployment.ipc_directory))
        made = close.enter_context(DetectorQueue(deployment, files, work))
        close.enter_context(made.driver)
        made.open()
        yield made


# It is first: it shows the history from its begin.
def test_the_transcript_in_the_documentation_is_that_of_a_real_run(queue: DetectorQueue):
    assert page_of(queue) == PAGE.read_text()


def test_all_plans_can_be_queued_paused_and_aborted(queue: DetectorQueue):
    queue.add("fly", ["det"], 20)
    queue.add("fly_scan", ["det"], "motor", 0, 1, 20)
    options = {"shutter": "shutter", "sample": "sample", "sample_in": 0, "sample_out": 5}
    queue.add("tomography", ["det"], "rotation", 0, 180, 4, n_darks=1, n_flats=1, **options)
    queue.add("scan", ["det"], "motor", 0, 1, 3)
    queue.run()
    expected = ["fly", "fly_scan", "tomography", "scan"]
    assert queue.history()[-4:] == [(name, "completed") for name in expected], queue.documents[-1]

    # A point is replayed after a pause; a flight can only be aborted or resumed.
    queue.start_flight(1000)
    queue.do("re_pause", option="immediate")
    queue.wait_for(manager_state="paused")
    queue.do("re_abort")
    queue.wait_for(manager_state="idle")
    assert queue.history()[-1] == ("fly", "aborted")
    queue.wait_until_idle()
    queue.do("queue_clear")
    queue.assert_next_plan_is_right()


def test_an_environment_that_is_killed_in_a_flight_leaves_no_run(queue: DetectorQueue):
    """One that is destroyed is part of the transcript."""
    queue.start_flight(2000)
    os.kill(queue.worker, signal.SIGKILL)
    queue.do("environment_destroy")
    queue.wait_for(worker_environment_exists=False, manager_state="idle")
    queue.do("queue_clear")
    queue.open()
    queue.assert_next_plan_is_right()
