"""Documents of each kind, composed from images without files, a device or a RunEngine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from event_model import DocumentNames, schema_validators

from stddaq.files.growing_run import Images
from stddaq.files.raw_rows import RawDatasets
from stddaq_ophyd.core.documents import Composer, Document, ImageSource, documents_of
from stddaq_ophyd.core.errors import AcquisitionError, StreamsMixedError

PER_EVENT = 2


def source(**changes: Any) -> ImageSource:
    values: dict[str, Any] = {
        "data_key": "det_image",
        "path": Path("/data/det_Published.h5"),
        "images_per_event": PER_EVENT,
        "event_bytes": 2**20,
        "swmr": True,
        "number_of_writers": 2,
        "raw_files": "det_{writer}.h5",
    }
    return ImageSource(**values | changes)


def images(start: int, stop: int, prefix: str = "det_") -> Images:
    """Return images `start` to `stop` (exclusive) of a run of two writers."""
    files = tuple(
        RawDatasets(Path(f"/data/{prefix}{i}.h5"), "/det", (2, 3), np.dtype("<u2"), np.dtype("<u8"), "run")
        for i in range(2)
    )
    ids = np.arange(start, stop)
    return Images(files, ids % 2, ids // 2, ids.astype(np.uint64))


def emit(documents: list[Document], descriptor: str = "primary", *, is_first: bool = False) -> None:
    """Complete documents as a RunEngine does before it emits them, `is_first` in their stream."""
    for name, doc in documents:
        if name in ("resource", "stream_resource"):
            doc["run_start"] = "run"
        elif name == "stream_datum":
            doc["descriptor"] = descriptor
            start = 0 if is_first else doc["indices"]["start"]
            n = doc["indices"]["stop"] - doc["indices"]["start"]
            doc["seq_nums"] = {"start": start + 1, "stop": start + n + 1}
        schema_validators[DocumentNames[name]].validate(doc)


def compose(
    composer: Composer,
    n_events: int,
    *,
    emitted: bool = True,
    descriptor: str = "primary",
    is_first: bool = False,
) -> list[Document]:
    """Return the documents of events up to `n_events` that are not published yet."""
    first = composer.n_published
    documents = list(composer.compose(n_events, images(first * PER_EVENT, n_events * PER_EVENT)))
    if emitted:
        emit(documents, descriptor, is_first=is_first)
    return documents


def names(documents: list[Document]) -> list[str]:
    return [name for name, _ in documents]


def test_a_stream_has_one_resource_and_contiguous_data():
    composer = documents_of("stream", "det").composer(source())
    first, second = compose(composer, 1), compose(composer, 4)
    assert names(first + second) == ["stream_resource", "stream_datum", "stream_datum"]
    assert [doc["indices"] for name, doc in first + second if name == "stream_datum"] == [
        {"start": 0, "stop": 1},
        {"start": 1, "stop": 4},
    ]
    assert composer.n_published == 4
    assert compose(composer, 4) == []


def test_a_stream_resource_describes_how_to_read_the_published_images_file():
    (_, resource), _ = compose(documents_of("stream", "det").composer(source()), 1)
    assert resource["uri"] == "file://localhost/data/det_Published.h5"
    assert resource["mimetype"] == "application/x-hdf5"
    assert resource["parameters"] == {
        "dataset": "/entry/data/data",
        "chunk_shape": (4,),
        "swmr": True,
        "multiplier": PER_EVENT,
        "number_of_writers": 2,
        "raw_files": "det_{writer}.h5",
    }


def test_stream_data_that_a_pause_discarded_are_composed_again():
    composer = documents_of("stream", "det").composer(source())
    discarded = compose(composer, 1, emitted=False)
    assert composer.n_published == 0
    again = compose(composer, 1)
    assert names(discarded) == names(again) == ["stream_resource", "stream_datum"]
    assert again[1][1]["indices"] == {"start": 0, "stop": 1}
    compose(composer, 2, emitted=False)
    assert composer.n_published == 1
    assert compose(composer, 2)[0][1]["indices"] == {"start": 1, "stop": 2}


def test_data_of_one_resource_in_two_streams_are_an_error_once():
    composer = documents_of("stream", "det").composer(source())
    compose(composer, 1)
    composer.check_stream(set())
    compose(composer, 2, descriptor="other", is_first=True)
    with pytest.raises(StreamsMixedError, match="name_streams names streams"):
        composer.check_stream(set())
    composer.check_stream(set())
    assert composer.n_published == 2


@pytest.mark.parametrize(
    ("spec", "kwargs"),
    [
        ("AD_HDF5", {}),
        ("STDDAQ_PUBLISHED", {"dataset": "/entry/data/data"}),
        ("STDDAQ_RAW", {"template": "det_{writer}.h5"}),
    ],
)
def test_each_event_has_a_datum_of_one_resource(spec: str, kwargs: dict[str, Any]):
    composer = documents_of(spec, "det").composer(source())
    documents = [document for event in range(3) for document in compose(composer, event + 1)]
    assert names(documents) == ["resource", "datum", "datum", "datum"]
    (_, resource), *data = documents
    assert (resource["spec"], resource["root"]) == (spec, "/")
    assert resource["resource_kwargs"] == {"frame_per_point": PER_EVENT} | kwargs
    assert [datum["datum_kwargs"]["point_number"] for _, datum in data] == [0, 1, 2]


def test_a_raw_datum_holds_the_rows_of_its_images():
    composer = documents_of("STDDAQ_RAW", "det").composer(source())
    *_, (_, datum) = compose(composer, 3)
    assert datum["datum_kwargs"]["rows"] == [[0, 2, 0, 1, 1], [1, 2, 1, 1, 1]]


def test_raw_files_of_the_next_driver_run_have_a_resource_of_their_own():
    composer = documents_of("STDDAQ_RAW", "det").composer(source())
    compose(composer, 1)
    documents = list(composer.compose(2, images(0, PER_EVENT, prefix="det_part2_")))
    assert names(documents) == ["resource", "datum"]
    assert documents[0][1]["resource_path"] == "data/det_part2_0.h5"


def test_a_datum_id_is_in_the_reading_and_its_documents_are_collected_once():
    documents = documents_of("STDDAQ_PUBLISHED", "det")
    composer = documents.composer(source())
    reading = documents.reading("det_image", lambda: compose(composer, 1))
    collected = list(documents.collect(lambda: []))
    assert names(collected) == ["resource", "datum"]
    assert reading["det_image"]["value"] == collected[1][1]["datum_id"]
    # A second reading of the same point publishes nothing and contains the same datum.
    assert documents.reading("det_image", lambda: [])["det_image"]["value"] == reading["det_image"]["value"]
    assert list(documents.collect(lambda: [])) == []


def test_staging_discards_documents_that_were_not_collected():
    documents = documents_of("STDDAQ_RAW", "det")
    documents.reading("det_image", lambda: compose(documents.composer(source()), 1))
    documents.reset()
    assert list(documents.collect(lambda: [])) == []


def test_stream_documents_are_collected_and_not_in_the_reading():
    documents = documents_of("stream", "det")
    composer = documents.composer(source())
    assert documents.reading("det_image", lambda: compose(composer, 1)) == {}
    assert composer.n_published == 0
    assert names(list(documents.collect(lambda: compose(composer, 1)))) == ["stream_resource", "stream_datum"]


def test_unknown_documents_are_refused_with_the_known_names():
    with pytest.raises(
        AcquisitionError, match=r"det: documents: expected 'stream' or 'AD_HDF5' or .*, got \"x\""
    ):
        documents_of("x", "det: documents")
