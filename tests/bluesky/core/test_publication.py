"""The file that documents reference holds exactly the published images."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from support.data.raw_files import RunSpec, dataset, pixels, stream, write_run

from stddaq.files.growing_run import Images, of_closed_run
from stddaq.files.run import read_run
from stddaq_ophyd.core.documents import Document, documents_of
from stddaq_ophyd.core.errors import AcquisitionError
from stddaq_ophyd.core.paths import PathInfo
from stddaq_ophyd.core.publication import Point, Publication

IMAGES = stream(range(12))
PIXELS = pixels(IMAGES)


@pytest.fixture
def images(tmp_path: Path) -> Images:
    """Return the images of a closed run of three writers."""
    return of_closed_run(read_run(write_run(tmp_path, IMAGES, RunSpec(n_writers=3))))


@pytest.fixture
def publication(tmp_path: Path) -> Publication:
    return publication_of(tmp_path, "stream")


def publication_of(directory: Path, documents: str) -> Publication:
    paths = PathInfo(directory, "file", directory)
    return Publication("det", paths, "det_image", documents_of(documents, "det"))


def emit(documents: list[Document], descriptor: str = "primary", *, is_first: bool = False) -> list[Document]:
    """Complete documents as a RunEngine does before it emits them, `is_first` in their stream."""
    for name, doc in documents:
        doc["descriptor" if name == "stream_datum" else "run_start"] = descriptor
        if name == "stream_datum":
            doc["seq_nums"] = {"start": 1 if is_first else doc["indices"]["start"] + 1, "stop": 0}
    return documents


def shown(path: Path) -> np.ndarray:
    """Return the images in a published images file."""
    with h5py.File(path) as file:
        return dataset(file, "entry/data/data")[()]


def indices(documents: list[Document]) -> list[tuple[int, int]]:
    return [
        (doc["indices"]["start"], doc["indices"]["stop"]) for name, doc in documents if name == "stream_datum"
    ]


def test_points_are_shown_one_after_the_other(publication: Publication, images: Images):
    for event in range(3):
        point = Point(images[2 * event : 2 * event + 2], is_live=False)
        assert indices(emit(publication.publish_point(point))) == [(event, event + 1)]
        np.testing.assert_array_equal(shown(publication.files[0]), PIXELS[: 2 * event + 2])
    assert publication.close() == []


def test_a_point_whose_documents_were_emitted_is_not_published_again(
    publication: Publication, images: Images
):
    point = Point(images[:2], is_live=False)
    emit(publication.publish_point(point))
    assert publication.publish_point(point) == []


def test_a_point_whose_documents_were_discarded_is_published_again(publication: Publication, images: Images):
    point = Point(images[:2], is_live=False)
    publication.publish_point(point)
    assert indices(emit(publication.publish_point(point))) == [(0, 1)]
    np.testing.assert_array_equal(shown(publication.files[0]), PIXELS[:2])


def test_orphans_of_a_pause_are_not_shown(publication: Publication, images: Images):
    emit(publication.publish_point(Point(images[:2], is_live=False)))
    publication.publish_point(Point(images[2:4], is_live=False))
    documents = emit(publication.publish_point(Point(images[4:6], is_live=False)))
    assert indices(documents) == [(1, 2)]
    np.testing.assert_array_equal(shown(publication.files[0]), PIXELS[[0, 1, 4, 5]])


def test_orphans_at_the_end_are_removed_from_the_file(publication: Publication, images: Images):
    emit(publication.publish_point(Point(images[:2], is_live=False)))
    publication.publish_point(Point(images[2:4], is_live=False))
    assert publication.close() == []
    np.testing.assert_array_equal(shown(publication.files[0]), PIXELS[:2])


def test_a_file_without_published_images_is_removed_at_the_end(publication: Publication, images: Images):
    publication.publish_point(Point(images[:2], is_live=False))
    (path,) = publication.files
    assert path.exists()
    assert publication.close() == []
    assert not path.exists()


def test_a_new_stream_has_a_file_of_its_own(publication: Publication, images: Images):
    emit(publication.publish_point(Point(images[:2], is_live=False)), "a")
    publication.expect_new_stream(2)
    assert indices(emit(publication.publish_point(Point(images[2:4], is_live=False)), "b")) == [(0, 1)]
    assert [path.name for path in publication.files] == ["filePublished.h5", "filePublished2.h5"]
    np.testing.assert_array_equal(shown(publication.files[1]), PIXELS[2:4])


def test_a_stream_that_is_named_is_continued(publication: Publication, images: Images):
    for event, name in enumerate("aba"):
        if event < 2:
            publication.expect_new_stream(2, name)
        emit(publication.publish_point(Point(images[2 * event : 2 * event + 2], is_live=False), name), name)
    np.testing.assert_array_equal(shown(publication.files[0]), PIXELS[[0, 1, 4, 5]])
    assert publication.close() == []


def test_images_that_continue_another_stream_are_reported_at_the_end(
    publication: Publication, images: Images
):
    emit(publication.publish_point(Point(images[:2], is_live=False)), "a")
    emit(publication.publish_point(Point(images[2:4], is_live=False)), "b", is_first=True)
    (error,) = publication.close()
    assert "det: the last images continue those of another stream" in str(error)


def test_a_new_descriptor_of_the_same_stream_is_no_other_stream(publication: Publication, images: Images):
    # As after bluesky's `configure`.
    for event, descriptor in enumerate("abc"):
        emit(publication.publish_point(Point(images[2 * event : 2 * event + 2], is_live=False)), descriptor)
    assert publication.close() == []
    np.testing.assert_array_equal(shown(publication.files[0]), PIXELS[:6])


def test_another_number_of_images_per_event_is_refused(publication: Publication, images: Images):
    emit(publication.publish_point(Point(images[:2], is_live=False)))
    with pytest.raises(
        AcquisitionError, match="expected 2 images per event, as this stream was described, got 3"
    ):
        publication.publish_point(Point(images[2:5], is_live=False))


def test_another_number_of_images_than_described_is_refused_before_anything_is_announced(
    publication: Publication, images: Images
):
    publication.expect_new_stream(3)
    with pytest.raises(
        AcquisitionError, match="expected 3 images per event, as this stream was described, got 2"
    ):
        publication.publish_point(Point(images[:2], is_live=False))
    assert publication.files == ()


def test_events_of_a_flight_are_published_in_ranges(publication: Publication, images: Images):
    for part, expected in ((slice(4), (0, 2)), (slice(4, 12), (2, 6))):
        _, documents = publication.publish_events(images[part], 2, live=False)
        assert indices(emit(documents)) == [expected]
    np.testing.assert_array_equal(shown(publication.files[0]), PIXELS)


def test_a_flight_whose_documents_were_discarded_cannot_continue(publication: Publication, images: Images):
    publication.publish_events(images[:4], 2, live=False)
    with pytest.raises(AcquisitionError, match="documents of 4 images of a flight were collected and not"):
        publication.publish_events(images[4:8], 2, live=False)


def test_a_raw_file_that_was_removed_is_an_error_that_names_it(publication: Publication, images: Images):
    images.raw_files[1].path.unlink()
    with pytest.raises(AcquisitionError, match=r"det: .*file1\.h5"):
        publication.publish_point(Point(images[:4], is_live=False))


@pytest.mark.parametrize("documents", ["AD_HDF5", "STDDAQ_PUBLISHED", "STDDAQ_RAW"])
def test_every_point_has_a_datum_when_documents_are_datums(tmp_path: Path, images: Images, documents: str):
    publication = publication_of(tmp_path, documents)
    points = [Point(images[2 * event : 2 * event + 2], is_live=False) for event in range(3)]
    found = [name for point in points for name, _ in emit(publication.publish_point(point))]
    assert found == ["resource", "datum", "datum", "datum"]
    assert publication.publish_point(points[-1]) == []
    np.testing.assert_array_equal(shown(publication.files[0]), PIXELS[:6])
