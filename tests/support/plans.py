"""What tests of plans need: a camera that publishes on trigger, the documents emitted, and their images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import h5py
import numpy as np
from support.runs import Image, Rig, image_of


class Documents:
    """What was emitted, by name and in order; called by a RunEngine."""

    def __init__(self) -> None:
        self.all: list[tuple[str, dict[str, Any]]] = []
        self.by_name: dict[str, list[dict[str, Any]]] = defaultdict(list)

    def __call__(self, name: str, doc: Any) -> None:
        self.all.append((name, doc))
        self.by_name[name].append(doc)

    def __getitem__(self, name: str) -> list[dict[str, Any]]:
        return self.by_name[name]


class PointCamera:
    """Publishes the next images of a rig on each call; `published` are those so far."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.published: list[Image] = []
        self.next_id = 0
        self.skip_calls: set[int] = set()
        self.n_calls = 0

    def fire(self, n_images: int) -> None:
        self.n_calls += 1
        if self.n_calls in self.skip_calls:
            return
        images = [image_of(self.next_id + i, self.rig.config.image_shape) for i in range(n_images)]
        self.next_id += n_images
        self.rig.publish(images)
        self.published += images


def stream_images(found: Documents, key: str = "det_image") -> np.ndarray:
    """The images that the StreamResource and the StreamData of one key tell of, (n, height, width)."""
    (resource,) = [doc for doc in found["stream_resource"] if doc["data_key"] == key]
    data = [doc for doc in found["stream_datum"] if doc["stream_resource"] == resource["uid"]]
    multiplier = resource["parameters"]["multiplier"]
    path = resource["uri"].removeprefix("file://localhost")
    stop = 0
    for datum in data:
        assert datum["indices"]["start"] == stop
        stop = datum["indices"]["stop"]
    with h5py.File(path, "r", swmr=resource["parameters"]["swmr"]) as file:
        images = file[resource["parameters"]["dataset"]]
        assert isinstance(images, h5py.Dataset)
        assert len(images) == stop * multiplier
        return images[()]


def assert_images(found: np.ndarray, expected: Sequence[Image]) -> None:
    """`found` (n, height, width) are `expected`, every pixel."""
    assert len(found) == len(expected)
    for pixels, image in zip(found, expected, strict=True):
        assert np.array_equal(pixels, image.pixels), f"image {image.image_id}"
