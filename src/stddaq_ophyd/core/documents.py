"""The documents that reference images: a frozen description of the file goes in, documents come out.

event-model composes all of them, and validates the first of each kind in a stream. The RunEngine completes
a document in place when it emits it; that shows what has been published, because a pause discards documents
that were collected and not emitted.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from event_model import (
    ComposeResourceBundle,
    ComposeStreamResourceBundle,
    StreamDatum,
    StreamRange,
    compose_resource,
    compose_stream_resource,
)

from stddaq.files.growing_run import Images
from stddaq.files.nexus import DATA
from stddaq.text import mismatch, shown
from stddaq_ophyd.core.datum_rows import datum_rows
from stddaq_ophyd.core.errors import AcquisitionError, StreamsMixedError

MIMETYPE = "application/x-hdf5"
# Readers fetch this much at once, unless one event is larger.
CHUNK_BYTES = 4 * 2**20

Document = tuple[str, Any]
# Returns the documents of what is ready and was not published before.
Publish = Callable[[], list[Document]]
DocumentsName = Literal["stream", "AD_HDF5", "STDDAQ_PUBLISHED", "STDDAQ_RAW"]


@dataclass(frozen=True, slots=True)
class ImageSource:
    """What documents say about the images of one stream.

    Attributes:
        data_key: as in the event descriptor.
        path: the published images file.
        images_per_event: images of one point, or of one event of a flight.
        event_bytes: size of the images of one event.
        swmr: whether readers must open the file in SWMR mode, because raw files may still grow.
        raw_files: template of the names of the raw files, with `{writer}`.
    """

    data_key: str
    path: Path
    images_per_event: int
    event_bytes: int
    swmr: bool
    number_of_writers: int
    raw_files: str


class Composer(ABC):
    """Composes the documents of one stream; its events count from 0."""

    @property
    @abstractmethod
    def n_published(self) -> int:
        """Return the number of events whose documents were emitted, or can no longer be withdrawn."""

    def withdraw(self, event: int) -> None:
        """Forget `event` and those after it, whose documents are not emitted."""
        return

    @abstractmethod
    def compose(self, n_events: int, images: Images) -> Iterator[Document]:
        """Yield documents of `images`, the events from `n_published` to `n_events` (not included)."""

    @property
    def descriptors(self) -> Set[str]:
        """Return the event descriptors of the stream, where documents show them."""
        return frozenset()

    def check_stream(self, others: Set[str]) -> None:
        """Raise `StreamsMixedError` when documents were emitted into another stream.

        `others` are the descriptors of all other streams.
        """
        return


class Documents(ABC):
    """How a device references its images in documents. It belongs to one device.

    Attributes:
        external: mark of the data key in the event descriptor.
        supports_flights: whether documents can be published while a flight goes on.
        reads_growing_files: whether readers of these documents can open files that still grow.
    """

    external: ClassVar[str]
    supports_flights: ClassVar[bool]
    reads_growing_files: bool = True

    @abstractmethod
    def composer(self, source: ImageSource) -> Composer:
        """Return a composer for a new stream."""

    @abstractmethod
    def reset(self) -> None:
        """Forget what was published before the device was staged."""

    def reading(self, data_key: str, publish: Publish) -> dict[str, Any]:
        """Return what the reading of an event holds for the images."""
        return {}

    def read_again(self, withdraw: Callable[[], None], publish: Publish) -> None:
        """Change the last reading, if it was published before its new stream was known."""
        return

    @abstractmethod
    def collect(self, publish: Publish) -> Iterator[Document]:
        """Yield the documents that the RunEngine emits next."""


def documents_of(name: str, where: str) -> Documents:
    """Return the documents that a user chose by name. Raises `AcquisitionError` that names `where`."""
    match name:
        case "stream":
            return StreamDocuments()
        case "AD_HDF5":
            return AreaDetectorDocuments()
        case "STDDAQ_PUBLISHED":
            return PublishedDocuments()
        case "STDDAQ_RAW":
            return RawDocuments()
    raise AcquisitionError(mismatch(where, " or ".join(map(repr, get_args(DocumentsName))), shown(name)))


# StreamResource and StreamDatum.


class StreamDocuments(Documents):
    """A StreamResource per stream, and a StreamDatum for each stretch of events."""

    external = "STREAM:"
    supports_flights = True

    def composer(self, source: ImageSource) -> StreamComposer:
        return StreamComposer(source)

    def reset(self) -> None:
        pass  # Each composer has its own state.

    def collect(self, publish: Publish) -> Iterator[Document]:
        yield from publish()


class StreamComposer(Composer):
    """Composes one StreamResource and its StreamDatum documents."""

    def __init__(self, source: ImageSource) -> None:
        self._bundle: ComposeStreamResourceBundle = compose_stream_resource(
            mimetype=MIMETYPE,
            uri=f"file://localhost{source.path.as_uri().removeprefix('file://')}",
            data_key=source.data_key,
            parameters={
                "dataset": DATA,
                # In events: tiled uses the numbers for the leading axes of (event, image, y, x).
                "chunk_shape": (max(1, CHUNK_BYTES // source.event_bytes),),
                "swmr": source.swmr,
                "multiplier": source.images_per_event,
                "number_of_writers": source.number_of_writers,
                "raw_files": source.raw_files,
            },
        )
        self._data: list[StreamDatum] = []
        self._descriptors: set[str] = set()

    @property
    def descriptors(self) -> Set[str]:
        emitted = (datum["descriptor"] for datum in self._data if datum["descriptor"])
        return self._descriptors or set(islice(emitted, 1))

    @property
    def n_published(self) -> int:
        return max((datum["indices"]["stop"] for datum in self._data if datum["descriptor"]), default=0)

    def compose(self, n_events: int, images: Images | None = None) -> Iterator[Document]:
        first = self.n_published
        if n_events <= first:
            return
        # What was collected and not emitted is composed again; of what was emitted the newest is enough.
        self._data = [datum for datum in self._data if datum["descriptor"]][-1:]
        resource = self._bundle.stream_resource_doc
        if "run_start" not in resource:
            yield "stream_resource", resource
        # All of a stream have the same form.
        datum = self._bundle.compose_stream_datum(StreamRange(start=first, stop=n_events), validate=not first)
        self._data.append(datum)
        yield "stream_datum", datum

    def check_stream(self, others: Set[str]) -> None:
        """Also note descriptors: bluesky's `configure` makes a new one for the same stream."""
        for datum in self._data:
            descriptor = datum["descriptor"]
            if not descriptor or descriptor in self._descriptors:
                continue
            # A new stream counts its events from 1.
            is_first = datum["seq_nums"]["start"] == 1 and datum["indices"]["start"] > 0
            if descriptor in others or is_first:
                self._data = self._data[-1:]
                self._descriptors.add(descriptor)
                raise StreamsMixedError(
                    "the last images continue those of another stream; the preprocessor "
                    "stddaq_ophyd.preprocessors.name_streams names streams"
                )
            self._descriptors.add(descriptor)


# Resource and Datum.


class DatumDocuments(Documents):
    """A Resource per file, and a Datum for each event, whose id is the value of the images in the event.

    A Datum counts as published as soon as it is composed: it does not show whether it was emitted.
    """

    external = "FILESTORE:"
    supports_flights = False
    spec: ClassVar[DocumentsName]

    def __init__(self) -> None:
        self._to_collect: list[Document] = []
        self._value: dict[str, Any] = {"value": ""}
        # Documents of the last reading among those to collect.
        self._of_reading: list[Document] = []

    def reset(self) -> None:
        self._to_collect.clear()
        self._of_reading.clear()

    def reading(self, data_key: str, publish: Publish) -> dict[str, Any]:
        self._value = {"value": self._value["value"], "timestamp": time.time()}
        self._publish(publish)
        return {data_key: self._value}

    def read_again(self, withdraw: Callable[[], None], publish: Publish) -> None:
        # A RunEngine describes a new stream after the first reading, of which it keeps the object.
        if self._of_reading:
            del self._to_collect[-len(self._of_reading) :]
            withdraw()
            self._publish(publish)

    def _publish(self, publish: Publish) -> None:
        self._of_reading = publish()
        self._to_collect += self._of_reading
        for name, document in self._of_reading:
            if name == "datum":
                self._value["value"] = document["datum_id"]

    def collect(self, publish: Publish) -> Iterator[Document]:
        documents, self._to_collect, self._of_reading = self._to_collect, [], []
        # Readings that were not collected, as those at a prompt, may have brought a Resource before.
        resources: set[str] = set()
        for name, document in documents:
            if name != "resource" or document["uid"] not in resources:
                yield name, document
            if name == "resource":
                resources.add(document["uid"])

    def composer(self, source: ImageSource) -> DatumComposer:
        return DatumComposer(source, self)

    def path(self, source: ImageSource, images: Images) -> Path:
        """Return the path of the Resource of `images`."""
        return source.path

    def resource_kwargs(self, path: Path) -> dict[str, Any]:
        """Return what the Resource of the file `path` says besides the number of images of a point."""
        return {}

    def datum_kwargs(self, images: Images) -> dict[str, Any]:
        """Return what the Datum of `images` says besides the number of the point."""
        return {}


class AreaDetectorDocuments(DatumDocuments):
    """Documents of spec AD_HDF5. Its handlers are widespread, and cannot read files that grow."""

    spec = "AD_HDF5"
    reads_growing_files = False


class PublishedDocuments(DatumDocuments):
    """Documents of spec STDDAQ_PUBLISHED, for `PublishedImagesHandler`."""

    spec = "STDDAQ_PUBLISHED"

    def resource_kwargs(self, path: Path) -> dict[str, Any]:
        # TiledWriter does not know the spec, but needs the dataset.
        return {"dataset": DATA}


class RawDocuments(DatumDocuments):
    """Documents of spec STDDAQ_RAW, a Resource per driver run, for `RawFilesHandler`."""

    spec = "STDDAQ_RAW"

    def path(self, source: ImageSource, images: Images) -> Path:
        return images.raw_files[0].path

    def resource_kwargs(self, path: Path) -> dict[str, Any]:
        return {"template": f"{path.name.removesuffix('0.h5')}{{writer}}.h5"}

    def datum_kwargs(self, images: Images) -> dict[str, Any]:
        return {"rows": [list(part) for part in datum_rows(images.files, images.rows)]}


class DatumComposer(Composer):
    """Composes a Datum for each event, and a Resource for each file that they reference."""

    def __init__(self, source: ImageSource, documents: DatumDocuments) -> None:
        self._source, self._documents = source, documents
        self._bundle: ComposeResourceBundle | None = None
        self._path: Path | None = None
        self._n_published = 0

    @property
    def n_published(self) -> int:
        return self._n_published

    def withdraw(self, event: int) -> None:
        """Forget `event` and those after it, whose documents are not emitted."""
        self._n_published = event

    def compose(self, n_events: int, images: Images) -> Iterator[Document]:
        n, first = self._source.images_per_event, self._n_published
        for event in range(first, n_events):
            of_event = images[(event - first) * n : (event - first + 1) * n]
            bundle = self._bundle_of(of_event)
            if "run_start" not in bundle.resource_doc:
                yield "resource", bundle.resource_doc
            datum_kwargs = {"point_number": event, **self._documents.datum_kwargs(of_event)}
            datum = bundle.compose_datum(datum_kwargs)
            self._n_published = event + 1
            yield "datum", datum

    def _bundle_of(self, images: Images) -> ComposeResourceBundle:
        """Return the Resource of `images`, a new one when they are in another file than those before."""
        path = self._documents.path(self._source, images)
        if self._bundle is None or path != self._path:
            self._path = path
            # frame_per_point is the name that area detectors use for images_per_event.
            kwargs = {"frame_per_point": self._source.images_per_event}
            self._bundle = compose_resource(
                spec=self._documents.spec,
                root="/",
                resource_path=str(path).lstrip("/"),
                resource_kwargs=kwargs | self._documents.resource_kwargs(path),
                path_semantics="posix",
            )
        return self._bundle
