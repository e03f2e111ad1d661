"""Zeros in the places of modules that an image lacks, when incomplete images are announced.

Their converters may be ahead: one that has started to write a later image into the slot must not find zeros
in it. Its mark in the ring tells.
"""

from __future__ import annotations

from array import array

from stddaq.config import DetectorConfig
from stddaq.config.modules import expected_modules
from stddaq.dataplane.image_publisher import ImagePublisher
from stddaq.udp.module_sync import ModuleImage
from stddaq.udp.placement import placement


class ModuleEraser:
    """Erases modules in the slots of incomplete images. `follow` must see every image that leaves."""

    def __init__(self, config: DetectorConfig, publisher: ImagePublisher) -> None:
        modules = expected_modules(config)
        self._publisher, self._n_slots = publisher, config.n_slots
        self._places = {module: placement(config, module) for module in modules}
        # By module and slot, the mark of the last image that left.
        self._marks = {module: array("I", bytes(4 * config.n_slots)) for module in modules}
        self._modules_without_marks: set[int] = set()
        self._spoiled: set[tuple[int, int]] = set()

    def follow(self, image: ModuleImage) -> None:
        """Note the marks of an image that leaves."""
        slot = image.image_id % self._n_slots
        for module, mark in image.marks:
            self._marks[module][slot] = mark
            if not mark:
                self._modules_without_marks.add(module)

    def erase(self, image: ModuleImage) -> bool:
        """Erase the modules that an image lacks. Return False if that could harm a later image."""
        before = [self._mark(image, module) for module in image.lacking]
        if any(mark is None for mark in before):
            return False
        pixels = self._publisher.pixels(image.image_id)
        for module in image.lacking:
            self._places[module].part_of(pixels)[:] = 0
        for module, mark in zip(image.lacking, before, strict=True):
            # A converter that has just started the next image of the slot: that one is not good.
            if (now := self._publisher.mark(image.image_id, module)) != mark:
                self._spoiled.add((module, now))
        return True

    def has_spoiled(self, image: ModuleImage) -> bool:
        """Return whether pixels of this image may have been erased."""
        found = self._spoiled.intersection(image.marks) if self._spoiled else set()
        self._spoiled -= found
        return bool(found)

    def _mark(self, image: ModuleImage, module: int) -> int | None:
        """Return the mark in the ring if it is that of an image that has left; None if it may be later."""
        mark = self._publisher.mark(image.image_id, module)
        is_known = mark in (0, self._marks[module][image.image_id % self._n_slots])
        return mark if is_known and module not in self._modules_without_marks else None
