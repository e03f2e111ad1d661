"""The documents that tell where images are: a frozen description of the file goes in, documents come out.

All are composed, and validated, by event_model. The RunEngine completes them in place when it emits them,
which is how we know what has been published: a pause may throw documents away that were handed out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from event_model import (
    ComposeStreamResourceBundle,
    StreamDatum,
    StreamRange,
    compose_resource,
    compose_stream_resource,
)

from stddaq.files.master_file import DATA

MIMETYPE = "application/x-hdf5"
# Handlers for it are everywhere; it reads frames_per_point images of a dataset for each point.
AREA_DETECTOR_SPEC = "AD_HDF5"
Document = tuple[str, Any]


@dataclass(frozen=True, slots=True)
class ImageSource:
    """What documents say of the images of one data key.

    Attributes:
        data_key: as in the event descriptor.
        path: of the aggregate.
        images_per_event: rows of the aggregate that belong to one event.
        image_shape: (height, width).
        swmr: whether readers must open the file in SWMR mode, because raw files may still be growing.
        raw_files: template of the names of the raw files, with `{writer}`.
    """

    data_key: str
    path: Path
    images_per_event: int
    image_shape: tuple[int, int]
    swmr: bool
    number_of_writers: int
    raw_files: str


class Announcer(Protocol):
    """Composes the documents of one series of images."""

    @property
    def n_published(self) -> int:
        """Events whose documents were emitted, or cannot be taken back."""
        ...

    def announce(self, n_events: int) -> Iterator[Document]:
        """Documents for the events from `n_published` to `n_events` (not included)."""
        ...


class StreamAnnouncer:
    """StreamResource, once, and StreamDatum for each stretch of events."""

    def __init__(self, source: ImageSource) -> None:
        self._bundle: ComposeStreamResourceBundle = compose_stream_resource(
            mimetype=MIMETYPE,
            uri=f"file://localhost{source.path.as_uri().removeprefix('file://')}",
            data_key=source.data_key,
            parameters={
                "dataset": DATA,
                "chunk_shape": (source.images_per_event, *source.image_shape),
                "swmr": source.swmr,
                "multiplier": source.images_per_event,
                "number_of_writers": source.number_of_writers,
                "raw_files": source.raw_files,
            },
        )
        self._newest: StreamDatum | None = None
        self._n_published = 0

    @property
    def n_published(self) -> int:
        """See `Announcer`."""
        if self._newest is not None and self._newest["descriptor"]:
            self._n_published, self._newest = self._newest["indices"]["stop"], None
        return self._n_published

    def announce(self, n_events: int) -> Iterator[Document]:
        """See `Announcer`."""
        first = self.n_published
        if n_events <= first:
            return
        resource = self._bundle.stream_resource_doc
        if "run_start" not in resource:
            yield "stream_resource", resource
        self._newest = self._bundle.compose_stream_datum(StreamRange(start=first, stop=n_events))
        yield "stream_datum", self._newest


class DatumAnnouncer:
    """Resource, once, and Datum for each event. What was handed out counts as published."""

    def __init__(self, source: ImageSource) -> None:
        self._bundle = compose_resource(
            spec=AREA_DETECTOR_SPEC,
            root="/",
            resource_path=str(source.path).lstrip("/"),
            resource_kwargs={"frame_per_point": source.images_per_event},
            path_semantics="posix",
        )
        self.n_published = 0
        self.datum_id = ""
        """Of the newest event."""

    def announce(self, n_events: int) -> Iterator[Document]:
        """See `Announcer`."""
        if n_events > self.n_published and "run_start" not in self._bundle.resource_doc:
            yield "resource", self._bundle.resource_doc
        for point in range(self.n_published, n_events):
            datum = self._bundle.compose_datum({"point_number": point})
            self.datum_id, self.n_published = datum["datum_id"], point + 1
            yield "datum", datum
