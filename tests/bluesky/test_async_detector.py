"""The ophyd-async device: documents of points and flights lead to the recorded images."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from bluesky import RunEngine
from bluesky.plans import count
from support.assertions.plans import Documents, PointCamera, assert_images, stream_images

pytest.importorskip("ophyd_async")

from stddaq_ophyd.async_detector import AsyncStdDaqDetector

MakeDetector = Callable[..., tuple[AsyncStdDaqDetector, PointCamera]]


@pytest.mark.parametrize("n_writers", [1, 3])
def test_the_documents_of_a_count_lead_to_its_images(
    engine: RunEngine, documents: Documents, make_async_detector: MakeDetector, n_writers: int
):
    det, camera = make_async_detector(rig={"number_of_writers": n_writers})
    seen: list[int] = []
    engine(count([det], 5), {"event": [lambda name, doc: seen.append(len(stream_images(documents, "det")))]})
    assert seen == [1, 2, 3, 4, 5]
    assert_images(stream_images(documents, "det"), camera.published)
