"""Write the transcript of a queue of plans into the documentation: python -m support.tools.queue_transcript.

`make test-all` runs the same plans with the same servers, and compares what it sees with the page. Like its
test, the tool needs the environment of the plan queues, see `.ci/make-queues`.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from support.processes.deployment import Deployment
from support.processes.detector_queue import DetectorQueue

from stddaq.closing import exit_at_signals

PAGE = Path(__file__).parents[3] / "docs" / "explanations" / "plans-in-a-queue.md"
INTRODUCTION = """\
# Plans in a queue: a transcript

bluesky-queueserver ran these plans with a driver, two writers and a simulated camera.
A line with `>` is a request to its manager; lines below it show the manager, the driver and the documents.
`make test-all` does the same again and compares every line.
The pixels of all images were read from the files that the documents reference.
They are those that the camera made for the ids.
`tests/support/tools/queue_transcript.py` writes this page.
"""
# Long enough to pause a point in its middle on a busy machine.
IMAGES_OF_A_POINT, POINT_HZ = 30, 10
FLIGHT_IMAGES = 2000


class Transcript:
    """Sends requests to the manager of a queue, and notes them with what came of them."""

    def __init__(self, queue: DetectorQueue) -> None:
        self._queue = queue
        self.lines: list[str] = []

    def start_flight(self) -> None:
        """Start a flight, and wait for documents of some images."""
        self.lines += [f"> queue_item_add fly([det], {FLIGHT_IMAGES})", "> queue_start"]
        self._queue.start_flight(FLIGHT_IMAGES)

    def title(self, text: str) -> None:
        """Begin a section."""
        self.lines += ["", f"# {text}"] if self.lines else [f"# {text}"]

    def do(self, request: str, **parameters: object) -> None:
        """Send a request, which must succeed."""
        values = "".join(f" {value}" for value in parameters.values())
        self.lines.append(f"> {request}{values}")
        self._queue.do(request, **parameters)

    def add(self, plan: str, *arguments: object) -> None:
        """Put a plan at the end of the queue."""
        shown = ", ".join(f"[{', '.join(x)}]" if isinstance(x, list) else str(x) for x in arguments)
        self.lines.append(f"> queue_item_add {plan}({shown})")
        self._queue.add(plan, *arguments)

    def note(self, text: str) -> None:
        """Note what was seen."""
        self.lines.append(f"  {text}")

    def note_state(self, manager_state: str, driver_state: str) -> None:
        """Wait until manager and driver are in these states, and note them."""
        self._queue.wait_for(manager_state=manager_state)
        self._queue.driver.wait((driver_state,), 60)
        self.note(f"manager {manager_state}, driver {driver_state}")

    def note_plan(self, images: str) -> None:
        """Note how the last plan ended, and its images."""
        name, status = self._queue.history()[-1]
        self.note(f"{name} {status}, {images}")


def in_stretches(ids: list[int]) -> str:
    """Return ids in words, like `0 to 2, 5 to 9`."""
    starts = [i for i in range(len(ids)) if i == 0 or ids[i] != ids[i - 1] + 1]
    ends = [*starts[1:], len(ids)]
    return ", ".join(f"{ids[start]} to {ids[end - 1]}" for start, end in zip(starts, ends, strict=True))


def page_of(queue: DetectorQueue) -> str:
    """Run all plans, and return the page."""
    transcript = Transcript(queue)
    _point_by_point(queue, transcript)
    _abort(queue, transcript)
    _destroyed_environment(queue, transcript)
    text = "\n".join(transcript.lines)
    return f"{INTRODUCTION}\n```text output\n{text}\n```\n"


def _point_by_point(queue: DetectorQueue, transcript: Transcript) -> None:
    transcript.title("Two plans, the second paused in the middle of a point")
    transcript.add("count", ["det"], 3)
    transcript.add("mv", "det.images_per_event", IMAGES_OF_A_POINT, "camera.rate", POINT_HZ)
    transcript.add("scan", ["det"], "motor", 0, 1, 2)
    transcript.do("queue_start")
    queue.wait_for_run(1)
    queue.driver.wait_for(lambda status: (status.count or 0) > IMAGES_OF_A_POINT, 60, "the second point")
    transcript.do("re_pause", option="immediate")
    transcript.note_state("paused", "recording")
    transcript.do("re_resume")
    transcript.note_state("idle", "idle")
    for (name, status), run in zip([queue.history()[0], queue.history()[-1]], queue.runs, strict=True):
        transcript.note(f"{name} {status}, images {in_stretches(queue.images_of(run))}")
    transcript.note("images of the interrupted point are in the raw files, and in no document")


def _abort(queue: DetectorQueue, transcript: Transcript) -> None:
    transcript.title("A flight that is paused and aborted")
    transcript.add("mv", "det.images_per_event", 1, "camera.rate", 50)
    transcript.start_flight()
    transcript.do("re_pause", option="immediate")
    transcript.note_state("paused", "recording")
    transcript.do("re_abort")
    transcript.note_state("idle", "idle")
    ids = queue.images_of(queue.runs[-1])
    assert ids == list(range(ids[0], ids[0] + len(ids)))
    transcript.note_plan("its images are consecutive")
    # The manager returns an aborted plan to the front of the queue.
    transcript.do("queue_clear")
    _right_plan(queue, transcript)


def _destroyed_environment(queue: DetectorQueue, transcript: Transcript) -> None:
    transcript.title("An environment that is destroyed in the middle of a flight")
    transcript.start_flight()
    transcript.do("environment_destroy")
    queue.wait_for(worker_environment_exists=False)
    transcript.note_state("idle", "recording")
    transcript.note("the run is left to the driver, and the next plan ends it")
    transcript.do("queue_clear")
    transcript.do("environment_open")
    queue.wait_until_open()
    _right_plan(queue, transcript)


def _right_plan(queue: DetectorQueue, transcript: Transcript) -> None:
    n_runs = len(queue.runs)
    transcript.add("count", ["det"], 3)
    transcript.do("queue_start")
    queue.wait_for_run(n_runs)
    transcript.note_state("idle", "idle")
    assert queue.images_of(queue.runs[-1]) == queue.last_images(3)
    transcript.note_plan("images: the last 3 of the camera")


def main() -> int:
    """Write the page."""
    exit_at_signals()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        files = work / "files"
        files.mkdir()
        deployment = Deployment(work)
        os.environ["STDDAQ_IPC_DIR"] = str(deployment.ipc_directory)
        try:
            with DetectorQueue(deployment, files, work) as queue, queue.driver:
                queue.open()
                PAGE.write_text(page_of(queue))
        finally:
            deployment.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
