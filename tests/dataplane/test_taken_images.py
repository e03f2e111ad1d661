"""Images are passed on with the verdict over their slots; those without a cursor are in test_ring_reader."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from support.processes.rings import MakeConfig

from stddaq.dataplane.image_publisher import ImagePublisher
from stddaq.dataplane.image_subscriber import ImageSubscriber
from stddaq.dataplane.metadata import ImageMetadata
from stddaq.dataplane.taken_images import TakenImages


class Bench:
    """A source, and a service that takes its images.

    Attributes:
        during_copy: called while an image is copied.
        finished: (image id, first pixel, whether it is overwritten) of the images that were passed on.
    """

    def __init__(self, publisher: ImagePublisher, subscriber: ImageSubscriber) -> None:
        self._publisher, self._reader = publisher, subscriber.reader
        self.during_copy: Callable[[], object] = lambda: None
        self.finished: list[tuple[int, int, bool]] = []
        self.taken = TakenImages(self._reader, 2, self._copy, self._finish)

    def publish(self, image_id: int) -> ImageMetadata:
        self._publisher.publish(image_id, np.full((32, 48), image_id, "<u2"))
        metadata = ImageMetadata()
        metadata.CopyFrom(self._publisher.metadata)
        return metadata

    def _copy(self, metadata: ImageMetadata) -> bytes:
        self.during_copy()
        return bytes(self._reader.ring.slot(metadata.image_id))

    def _finish(self, metadata: ImageMetadata, taken: bytes, is_overwritten: bool) -> None:
        self.finished.append((metadata.image_id, int.from_bytes(taken[:2], "little"), is_overwritten))


@pytest.fixture
def bench(make: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setenv("STDDAQ_IPC_DIR", str(tmp_path))
    config = make()
    with ImagePublisher(config) as publisher, closing(ImageSubscriber(config, "image")) as subscriber:
        yield Bench(publisher, subscriber)


def test_an_image_that_its_slot_holds_is_passed_on_at_once(bench: Bench) -> None:
    assert bench.taken.take(bench.publish(7))
    assert (bench.finished, len(bench.taken)) == ([(7, 7, False)], 0)


def test_an_image_that_is_overwritten_already_is_not_copied(bench: Bench) -> None:
    metadata = bench.publish(7)
    bench.publish(1007)
    assert not bench.taken.take(metadata)
    assert bench.finished == []


def test_an_image_that_is_overwritten_during_its_copy_is_passed_on_as_such(bench: Bench) -> None:
    bench.during_copy = lambda: bench.publish(1007)
    assert bench.taken.take(bench.publish(7))
    assert bench.finished == [(7, 1007, True)]
