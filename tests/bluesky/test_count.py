"""Points: what a plan records, what documents tell of it, and what is found where they point."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from bluesky import RunEngine
from bluesky.plans import count
from support.plans import Documents, PointCamera, assert_images, stream_images

from stddaq_ophyd import StdDaqDetector

MakeDetector = Callable[..., tuple[StdDaqDetector, PointCamera]]


@pytest.mark.parametrize(("n_writers", "images_per_trigger"), [(2, 1), (3, 4)])
def test_the_images_of_a_count_are_found_where_its_documents_point(
    engine: RunEngine,
    documents: Documents,
    make_detector: MakeDetector,
    n_writers: int,
    images_per_trigger: int,
):
    det, camera = make_detector(rig={"number_of_writers": n_writers})
    det.images_per_trigger.put(images_per_trigger)
    engine(count([det], 5))
    assert len(documents["event"]) == 5
    assert_images(stream_images(documents), camera.published)
