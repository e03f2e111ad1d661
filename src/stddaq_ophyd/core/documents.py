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
    ComposeResourceBundle,
    ComposeStreamResourceBundle,
    StreamDatum,
    StreamRange,
    compose_resource,
    compose_stream_resource,
)

from stddaq.files.growing_run import Images
from stddaq.files.master_file import DATA
from stddaq_ophyd.core.datum_rows import datum_rows
from stddaq_ophyd.core.errors import StreamsMixedError

MIMETYPE = "application/x-hdf5"
# The spec of area detectors, whose handlers are everywhere; they cannot read files that grow.
AREA_DETECTOR_SPEC = "AD_HDF5"
# Ours, see `stddaq_ophyd.handlers`.
PUBLISHED_SPEC, RAW_SPEC = "STDDAQ_PUBLISHED", "STDDAQ_RAW"
# What a reader fetches at once, unless one event takes more.
CHUNK_BYTES = 4 * 2**20
Document = tuple[str, Any]


@dataclass(frozen=True, slots=True)
class ImageSource:
    """What documents say of the images of one data key.

    Attributes:
        data_key: as in the event descriptor.
        path: of the published images file.
        images_per_event: images that belong to one event.
        event_bytes: of the images of one event.
        swmr: whether readers must open the file in SWMR mode, because raw files may still be growing.
        raw_files: template of the names of the raw files, with `{writer}`.
    """

    data_key: str
    path: Path
    images_per_event: int
    event_bytes: int
    swmr: bool
    number_of_writers: int
    raw_files: str


class Announcer(Protocol):
    """Composes the documents of one series of images."""

    @property
    def n_published(self) -> int:
        """Events whose documents were emitted, or cannot be taken back. Raises `StreamsMixedError`."""
        ...

    def announce(self, n_events: int, images: Images) -> Iterator[Document]:
        """Documents for the events from `n_published` to `n_events` (not included), which are `images`."""
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
                # In events: tiled takes the numbers for the leading axes of (event, image, y, x).
                "chunk_shape": (max(1, CHUNK_BYTES // source.event_bytes),),
                "swmr": source.swmr,
                "multiplier": source.images_per_event,
                "number_of_writers": source.number_of_writers,
                "raw_files": source.raw_files,
            },
        )
        self._newest: StreamDatum | None = None
        self._n_published = 0
        self._descriptor = ""

    @property
    def n_published(self) -> int:
        """See `Announcer`. Raises `StreamsMixedError`, once, when the documents came into two streams."""
        if self._newest is not None and self._newest["descriptor"]:
            descriptor, before = self._newest["descriptor"], self._descriptor
            self._n_published, self._newest = self._newest["indices"]["stop"], None
            self._descriptor = descriptor
            if before not in ("", descriptor):
                raise StreamsMixedError(
                    "the last images were announced behind those of another stream; a plan that goes back to "
                    'an earlier stream names it first: bps.mv(det.stream, "NAME"), for each stream'
                )
        return self._n_published

    def announce(self, n_events: int, images: Images) -> Iterator[Document]:
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
    """Resource and a Datum for each event, of spec AD_HDF5, STDDAQ_PUBLISHED or STDDAQ_RAW.

    What was handed out counts as published: nothing is seen of what becomes of a Datum.
    """

    def __init__(self, source: ImageSource, spec: str) -> None:
        self._source, self._spec = source, spec
        self._bundle: ComposeResourceBundle | None = None
        self._path: Path | None = None
        self.n_published = 0

    def announce(self, n_events: int, images: Images) -> Iterator[Document]:
        """See `Announcer`."""
        n, first = self._source.images_per_event, self.n_published
        for event in range(first, n_events):
            mine = images[(event - first) * n : (event - first + 1) * n]
            bundle = self._bundle_for(mine)
            if "run_start" not in bundle.resource_doc:
                yield "resource", bundle.resource_doc
            datum_kwargs: dict[str, Any] = {"point_number": event}
            if self._spec == RAW_SPEC:
                parts = datum_rows(mine.files, mine.rows)
                datum_kwargs["rows"] = [list(part) for part in parts]
            datum = bundle.compose_datum(datum_kwargs)
            self.n_published = event + 1
            yield "datum", datum

    def _bundle_for(self, images: Images) -> ComposeResourceBundle:
        """Return the Resource of `images`: the published images file, or the raw files of one driver run."""
        is_raw = self._spec == RAW_SPEC
        path = images.raw_files[0].path if is_raw else self._source.path
        if self._bundle is None or path != self._path:
            kwargs: dict[str, Any] = {"frame_per_point": self._source.images_per_event}
            if self._spec == PUBLISHED_SPEC:
                kwargs["dataset"] = DATA  # For TiledWriter, which does not know the spec.
            if is_raw:
                kwargs["template"] = f"{path.name.removesuffix('0.h5')}{{writer}}.h5"
            self._path = path
            self._bundle = compose_resource(
                spec=self._spec,
                root="/",
                resource_path=str(path).lstrip("/"),
                resource_kwargs=kwargs,
                path_semantics="posix",
            )
        return self._bundle
