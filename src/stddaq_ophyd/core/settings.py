"""How images are taken."""

from __future__ import annotations

from dataclasses import dataclass, field

from stddaq_ophyd.core.scalars import WantedScalars


@dataclass(frozen=True, slots=True)
class Settings:
    """How images are taken.

    Attributes:
        images_per_event: images of one point, or of one event of a flight.
        timeout: seconds in which the images of a point must come; in a flight, each image after the last.
        each_image: the timeout of a point is that of each image, too.
        allow_bad: whether damaged, overwritten, failed and skipped images are accepted.
        publish_live: whether images may be published before their files are closed.
        scalars: what to read of the images of a point.
    """

    images_per_event: int
    timeout: float
    each_image: bool = False
    allow_bad: bool = False
    publish_live: bool = True
    scalars: WantedScalars = field(default_factory=WantedScalars)
