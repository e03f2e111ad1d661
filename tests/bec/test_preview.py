"""Previews: the newest image of a live stream, binned."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from support.processes.deployment import Deployment, wait_until
from support.processes.live_streams import publish, started, streamed_pixels

from stddaq.client.live_stream import LiveImage, LiveStreamClient, LiveStreamError
from stddaq.config import DetectorConfig
from stddaq.dataplane.image_publisher import ImagePublisher
from stddaq_bec.preview import Preview, binned


@contextmanager
def preview_of(address: str, period: float = 0.0) -> Iterator[list[LiveImage]]:
    shown: list[LiveImage] = []
    preview = Preview(address, period, shown.append)
    try:
        yield shown
    finally:
        preview.close()


def test_a_preview_shows_images_until_it_is_closed(deployment: Deployment):
    with ImagePublisher(DetectorConfig.parse(deployment.config)) as publisher:
        stream = started(deployment, publisher)
        with preview_of(stream.address) as shown:
            stream.process.wait_for_line(" subscribed")
            publish(publisher, deployment, range(1))
            wait_until(lambda: shown, what="a preview")
    assert np.array_equal(shown[0].pixels, streamed_pixels(deployment, 0))


def test_previews_go_on_after_an_image_that_cannot_be_shown(deployment: Deployment):
    shown: list[int] = []

    def show(image: LiveImage) -> None:
        shown.append(image.image_id)
        if image.image_id == 0:
            raise OSError("Redis is away")

    with ImagePublisher(DetectorConfig.parse(deployment.config)) as publisher:
        stream = started(deployment, publisher)
        preview = Preview(stream.address, 0.0, show)
        try:
            stream.process.wait_for_line(" subscribed")
            for image_id in (0, 1):
                publish(publisher, deployment, range(image_id, image_id + 1))
                wait_until(lambda last=image_id: last in shown, what="a preview")
        finally:
            preview.close()


def test_the_newest_of_waiting_images_is_received(deployment: Deployment):
    with (
        ImagePublisher(DetectorConfig.parse(deployment.config)) as publisher,
        LiveStreamClient((stream := started(deployment, publisher)).address) as client,
    ):
        stream.process.wait_for_line(" subscribed")
        publish(publisher, deployment, range(5))
        assert client.receive(20).image_id == 0
        # The others may still be on their way.
        while (image := client.receive(20, newest=True)).image_id != 4:
            pass
        assert client.n_received + client.n_dropped == 5
    assert np.array_equal(image.pixels, streamed_pixels(deployment, 4))


def test_an_address_that_cannot_be_one_is_refused():
    with pytest.raises(LiveStreamError, match="expected tcp://HOST:PORT"):
        Preview("nowhere", 0.5, print)


@pytest.mark.parametrize(("max_pixels", "shape"), [(64, (8, 8)), (63, (4, 4)), (16, (4, 4)), (1, (1, 1))])
def test_a_preview_has_not_too_many_pixels(max_pixels: int, shape: tuple[int, int]):
    assert binned(np.zeros((8, 8), "u2"), max_pixels).shape == shape


def test_binning_keeps_type_and_mean_and_cuts_the_rest_off():
    pixels = np.array([[1, 3, 60000], [5, 7, 60000], [9, 9, 9]], "<u2")
    small = binned(pixels, 4)
    assert (small.tolist(), small.dtype) == ([[4]], np.dtype("<u2"))
