"""For tests of plans: a camera that publishes on trigger, the emitted documents, and their images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import h5py
import numpy as np
from bluesky import Msg, RunEngine
from bluesky import plan_stubs as bps
from support.processes.deployment import wait_until
from support.processes.recording import DAMAGED, GOOD, Image, Rig, image_of


class Documents:
    """Collects the documents that a RunEngine emits, by name and in order."""

    def __init__(self) -> None:
        self.all: list[tuple[str, dict[str, Any]]] = []
        self.by_name: dict[str, list[dict[str, Any]]] = defaultdict(list)

    def __call__(self, name: str, doc: Any) -> None:
        self.all.append((name, doc))
        self.by_name[name].append(doc)

    def __getitem__(self, name: str) -> list[dict[str, Any]]:
        return self.by_name[name]


def run_plan(engine: RunEngine, plan: Any) -> str:
    """Run a plan of one run, and return the uid of the run."""
    (uid,) = cast(tuple[str, ...], engine(plan))
    return uid


def in_step_with(found: Documents, images: Sequence[Image]) -> Iterator[Image]:
    """Return the images of a flight, the second and the last third only after further documents of images."""
    for i, image in enumerate(images):
        n = 3 * i // len(images)
        wait_until(lambda n=n: len(found["stream_datum"]) >= n, what="documents during the flight")
        yield image


# The messages of one step of `count`.
STEP = ("checkpoint", "trigger", "wait", "create", "read", "save")


def pausing(plan: Any) -> Iterator[Msg]:
    """Run `plan` with a pause after each message of its first step. Each pause replays the step."""
    left, returned = list(STEP), None
    while True:
        try:
            message = plan.send(returned)
        except StopIteration:
            return
        returned = yield message
        if left and message.command == left[0]:
            del left[0]
            yield from bps.pause()


class PointCamera:
    """Publishes the next images of a rig on each call.

    Attributes:
        published: the images so far.
        skip_calls: numbers (from 1) of the calls that publish nothing and call `on_skip` instead.
        damaged: ids of images that are published as damaged.
        n_calls: number of calls so far.
        n_held_back: number of images of each call that are not published.
        is_rearmed: ids restart at 0 with each call.
    """

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.published: list[Image] = []
        self.skip_calls: set[int] = set()
        self.on_skip: Callable[[], None] = lambda: None
        self.damaged: set[int] = set()
        self.n_held_back = 0
        self.is_rearmed = False
        self.n_calls = self._next_id = 0

    def fire(self, n_images: int) -> None:
        self.n_calls += 1
        if self.n_calls in self.skip_calls:
            self.on_skip()
            return
        if self.is_rearmed:
            self._next_id = 0
        ids = range(self._next_id, self._next_id + n_images - self.n_held_back)
        self._next_id = ids.stop
        images = [
            image_of(
                i,
                self.rig.config.image_shape,
                status=DAMAGED if i in self.damaged else GOOD,
                salt=self.n_calls if self.is_rearmed else 0,
            )
            for i in ids
        ]
        self.rig.publish(images)
        self.published += images


def skip_calls(engine: RunEngine, det: Any, camera: PointCamera, calls: set[int], margin: float) -> None:
    """Let `calls` of the camera publish nothing; their images are missing after `margin` seconds.

    All others have half a minute: a margin that a test can wait for is short for a busy machine.
    """
    camera.skip_calls, before = calls, engine.msg_hook

    def choose_margin(message: Msg) -> None:
        if message.obj is det and message.command in ("trigger", "kickoff"):
            det.margin.put(margin if camera.n_calls + 1 in calls else 30)
        if before:
            before(message)

    engine.msg_hook = choose_margin  # pyright: ignore[reportAttributeAccessIssue]


def stream_images(found: Documents, key: str = "det_image", stream: str | None = None) -> np.ndarray:
    """Return the images that the StreamResource and its StreamDatum documents reference, (n, height, width).

    `stream` selects one of several streams.
    """
    descriptors = {doc["uid"] for doc in found["descriptor"] if stream in (None, doc["name"])}
    data = [doc for doc in found["stream_datum"] if doc["descriptor"] in descriptors]
    (resource,) = [
        doc
        for doc in found["stream_resource"]
        if doc["data_key"] == key and doc["uid"] in {datum["stream_resource"] for datum in data}
    ]
    multiplier = resource["parameters"]["multiplier"]
    path = resource["uri"].removeprefix("file://localhost")
    stop = 0
    for datum in data:
        if datum["stream_resource"] != resource["uid"]:
            continue
        assert datum["indices"]["start"] == stop
        stop = datum["indices"]["stop"]
    with h5py.File(path, "r", swmr=resource["parameters"]["swmr"]) as file:
        images = file[resource["parameters"]["dataset"]]
        assert isinstance(images, h5py.Dataset)
        assert len(images) == stop * multiplier
        return images[()]


def assert_images(found: np.ndarray, expected: Sequence[Image]) -> None:
    """Compare every pixel of `found` (n, height, width) with `expected`."""
    assert len(found) == len(expected)
    for pixels, image in zip(found, expected, strict=True):
        assert np.array_equal(pixels, image.pixels), f"image {image.image_id}"
