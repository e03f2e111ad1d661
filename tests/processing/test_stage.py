"""The loop of a stage with fakes: good, overwritten and failed images, and the counters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.processes.deployment import make_config

from stddaq.config import DetectorConfig
from stddaq.daemon import metrics
from stddaq.daemon.metrics import Registry
from stddaq.daemon.statistics import Period
from stddaq.dataplane.image import Image
from stddaq.dataplane.metadata import GOOD_IMAGE, ID_MISSMATCH, UNDEFINED, ImageMetadata
from stddaq.dataplane.stream_counts import StreamCounts
from stddaq.errors import SourceError
from stddaq.processing.outputs import StageOutput
from stddaq.processing.stage import LEAST_SLOTS_NEEDED, Stage
from stddaq.processing.workers import Workers

CONFIG = DetectorConfig.parse(make_config())


class FakeRing:
    """A ring that can be removed."""

    is_removed = False

    def is_current(self) -> bool:
        return not self.is_removed


class FakeReader:
    """A ring with a cursor that holds every image except those of `overwritten`."""

    def __init__(self) -> None:
        self.overwritten: set[int] = set()
        self.n_slots_left = CONFIG.n_slots
        self.ring = FakeRing()

    def refresh(self) -> None:
        self.ring = FakeRing()

    def has_cursor_for(self, metadata: ImageMetadata) -> bool:
        return True

    def is_certain(self, metadata: ImageMetadata) -> bool:
        return True

    def holds(self, metadata: ImageMetadata) -> bool:
        return metadata.image_id not in self.overwritten

    def slots_left(self, metadata: ImageMetadata) -> int:
        return self.n_slots_left


class FakeSubscriber:
    """A subscription that receives the messages in `announced`."""

    suffix = "image"

    def __init__(self) -> None:
        self.reader, self.counts = FakeReader(), StreamCounts()
        self.announced: list[int] = []

    def register(self, registry: Registry, n_waiting: Callable[[], int]) -> None:
        del n_waiting
        self.counts.register(registry, self.suffix)

    def receive(self, limit: int) -> Iterator[ImageMetadata]:
        while self.announced and limit:
            limit -= 1
            yield ImageMetadata(image_id=self.announced.pop(0), status=GOOD_IMAGE, sequence=1)

    def image(self, metadata: ImageMetadata) -> Image:
        ring: Any = None
        return Image(metadata, ring)


class FakeOutput(StageOutput[str]):
    """Makes `made ID`, or `blank ID`."""

    n_slots = 10
    looks_at_pixels = True
    status_of_failed: int | None = UNDEFINED

    def __init__(self) -> None:
        self.published: list[tuple[int, int, str]] = []
        self.n_made = 0
        self.failing: dict[int, Exception] = {}
        self.overwriting: set[int] = set()
        self.reader: FakeReader | None = None

    def make(self, image: Image) -> str:
        self.n_made += 1
        if error := self.failing.get(image.image_id):
            raise error
        if image.image_id in self.overwriting and self.reader:
            self.reader.overwritten.add(image.image_id)
        return f"made {image.image_id}"

    def blank(self, image: Image) -> str:
        return f"blank {image.image_id}"

    def publish(self, metadata: ImageMetadata, made: str) -> None:
        self.published.append((metadata.image_id, metadata.status, made))

    def register(self, registry: Registry) -> None:
        pass

    def pairs(self, period: Period) -> dict[str, object]:
        return {}

    def close(self) -> None:
        pass


class Rig:
    """A stage that works in the test's thread."""

    def __init__(self) -> None:
        self.subscriber, self.output = FakeSubscriber(), FakeOutput()
        self.reader = self.output.reader = self.subscriber.reader
        self.registry = Registry("GF2", "test")
        subscriber: Any = self.subscriber
        self.stage = Stage(CONFIG, subscriber, self.output, 0, self.registry)
        self.workers = Workers(0, self.stage._work)

    def process(self, *image_ids: int) -> list[tuple[int, int, str]]:
        """Announce images and run the loop until they are published."""
        self.subscriber.announced.extend(image_ids)
        self.stage._receive()
        while self.stage._start(self.workers):
            self.stage._publish()
        self.stage._publish()
        published, self.output.published = self.output.published, []
        return published

    def count(self, metric: metrics.Metric) -> float:
        values = self.registry.read()
        return Period(1.0, dict.fromkeys(values, 0), values).count(metric)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_images_are_published_in_the_order_of_the_source(rig: Rig) -> None:
    assert rig.process(5, 6, 9, 7) == [(i, GOOD_IMAGE, f"made {i}") for i in (5, 6, 9, 7)]
    assert rig.count(metrics.IMAGES_PROCESSED) == 4


def test_image_overwritten_before_the_work_is_blank_and_its_pixels_are_not_read(rig: Rig) -> None:
    rig.reader.overwritten.add(2)
    assert rig.process(1, 2, 3) == [
        (1, GOOD_IMAGE, "made 1"),
        (2, ID_MISSMATCH, "blank 2"),
        (3, GOOD_IMAGE, "made 3"),
    ]
    assert rig.output.n_made == 2
    assert rig.count(metrics.IMAGES_OVERWRITTEN) == 1


def test_image_overwritten_during_the_work_is_blank(rig: Rig) -> None:
    rig.output.overwriting.add(2)
    assert rig.process(1, 2)[1] == (2, ID_MISSMATCH, "blank 2")
    assert rig.count(metrics.IMAGES_OVERWRITTEN) == 1
    assert rig.count(metrics.IMAGES_PROCESSED) == 2


def test_output_that_reads_no_pixels_publishes_overwritten_images_as_good(rig: Rig) -> None:
    rig.output.looks_at_pixels = False
    rig.reader.overwritten.add(2)
    assert rig.process(2) == [(2, GOOD_IMAGE, "made 2")]


def test_image_whose_processing_fails_is_blank_and_has_the_status_of_the_output(rig: Rig) -> None:
    rig.output.failing[2] = ValueError("no dark image")
    assert rig.process(1, 2, 3)[1] == (2, UNDEFINED, "blank 2")
    assert rig.count(metrics.IMAGES_FAILED) == 1
    rig.output.status_of_failed = None
    assert rig.process(2) == [(2, GOOD_IMAGE, "blank 2")]
    assert rig.count(metrics.IMAGES_FAILED) == 2


def test_overwritten_image_whose_processing_fails_counts_as_overwritten_only(rig: Rig) -> None:
    rig.output.failing[2] = ValueError("torn pixels")
    rig.reader.overwritten.add(2)
    assert rig.process(2) == [(2, ID_MISSMATCH, "blank 2")]
    assert (rig.count(metrics.IMAGES_OVERWRITTEN), rig.count(metrics.IMAGES_FAILED)) == (1, 0)


def test_missing_memory_ends_the_stage(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(image: Image) -> str:
        raise SourceError(f"image {image.image_id}: no memory")

    monkeypatch.setattr(rig.output, "blank", no_memory)
    rig.reader.overwritten.add(1)
    with pytest.raises(SourceError, match="image 1: no memory"):
        rig.process(1)


def test_image_waits_for_an_earlier_one_in_the_same_slot(rig: Rig) -> None:
    rig.subscriber.announced.extend([3, 13])
    rig.stage._receive()
    assert rig.stage._start(rig.workers)
    assert not rig.stage._start(rig.workers)
    rig.stage._publish()
    assert rig.stage._start(rig.workers)
    rig.stage._publish()
    assert [image_id for image_id, _, _ in rig.output.published] == [3, 13]


def test_slow_stage_skips_images_that_would_be_overwritten_and_resumes_when_there_is_room(
    rig: Rig,
) -> None:
    rig.output.overwriting.add(1)
    rig.process(1)
    rig.reader.n_slots_left = LEAST_SLOTS_NEEDED - 1
    n_made = rig.output.n_made
    assert rig.process(2) == [(2, ID_MISSMATCH, "blank 2")]
    assert rig.output.n_made == n_made, "it was processed although it was too late for it"
    rig.reader.n_slots_left = CONFIG.n_slots
    assert rig.process(3) == [(3, GOOD_IMAGE, "made 3")]
    rig.reader.n_slots_left = LEAST_SLOTS_NEEDED - 1
    assert rig.process(4) == [(4, GOOD_IMAGE, "made 4")]


def test_new_ring_is_used_although_images_keep_arriving(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    removed = rig.reader.ring
    rig.subscriber.announced.extend([1, 2])
    rig.stage._receive()
    rig.subscriber.announced.extend([3, 4])
    removed.is_removed = True
    rig.stage._follow_ring()
    assert rig.reader.ring is removed, "images of the old ring were still waiting"
    while rig.stage._start(rig.workers):
        rig.stage._publish()
        assert rig.stage._receive() == 0, "there must be an end of the images of the old ring"
    rig.stage._follow_ring()
    assert rig.reader.ring is not removed
    assert rig.stage._receive() == 2
