"""Which bytes of an image each pair of sender and receiver forwards, for both sides of the network.

With `sender_sends_full_images` a pair forwards every N-th image whole. Otherwise each image is cut: into N
parts with `use_all_forwarders`, else where the largest image of the detector would be cut into N parts, so
that small images use fewer pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from stddaq.config import DetectorConfig
from stddaq.config.model import DetectorType

# Bytes of the largest image of each detector, a part of the contract. C++ services have none for a PCO.
LARGEST_IMAGE_BYTES: Mapping[DetectorType, int] = {
    "gigafrost": 2016 * 2016 * 2,
    "eiger": 3106 * 3264 * 4,
    "jungfrau-raw": 32 * 1024 * 512 * 2,
    "jungfrau-converted": 32 * 1024 * 512 * 4,
    "pco": 2560 * 2160 * 2,
}


@dataclass(frozen=True, slots=True)
class Part:
    """The bytes of an image that one pair forwards.

    Attributes:
        cpp_length: what a C++ sender sends: it leaves out the bytes that N does not divide.
    """

    index: int
    offset: int
    length: int
    cpp_length: int


def number_of_pairs(config: DetectorConfig) -> int:
    """Return N, how many pairs of sender and receiver there are at most."""
    return config.max_number_of_forwarders_spawned


def part_of(config: DetectorConfig, index: int) -> Part | None:
    """Return the part of pair `index`; None if it has nothing to forward."""
    n_pairs, image_bytes = number_of_pairs(config), config.image_bytes
    if index >= n_pairs:
        return None
    if config.sender_sends_full_images:
        return Part(index, 0, image_bytes, image_bytes)
    # An image larger than any of its detector is cut like the largest.
    cut = image_bytes if config.use_all_forwarders else max(_largest(config), image_bytes)
    offset = index * cut // n_pairs
    if offset >= image_bytes:
        return None
    length = min((index + 1) * cut // n_pairs, image_bytes) - offset
    return Part(index, offset, length, min(image_bytes - offset, cut // n_pairs))


def parts_of(config: DetectorConfig) -> list[Part]:
    """Return the parts of an image, in the order of their pairs."""
    pairs = range(number_of_pairs(config))
    return [part for part in (part_of(config, index) for index in pairs) if part is not None]


def _largest(config: DetectorConfig) -> int:
    return LARGEST_IMAGE_BYTES[config.detector_type]
