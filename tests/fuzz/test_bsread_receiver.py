"""Every message of a camera server is an image, or is counted by what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.peers.cameras import PCO, Camera, start_receiver, totals, wait_for_totals
from support.processes.deployment import Deployment
from support.processes.recording import pixels_of
from support.processes.stream_readers import ImageReader
from support.tools.fuzzing import Health, bsread_messages, examples

from stddaq.sources.bsread.image_messages import REJECTIONS
from stddaq.wire.bsread import Compression

N_GOOD = 20


def messages(camera: Camera) -> st.SearchStrategy[list[bytes]]:
    """Generate almost valid messages, compressed or not."""
    valid = [camera.message(5, compression=compression) for compression in get_args(Compression)]
    return st.sampled_from(valid).flatmap(bsread_messages)


@pytest.mark.slow
def test_messages_of_a_camera_are_images_or_counted_by_what_is_wrong(
    make_deployment: Callable[..., Deployment],
) -> None:
    pco = make_deployment(**PCO)
    n_sent = 0
    with ImageReader(pco) as reader:
        with Camera() as camera:
            receiver = start_receiver(pco, camera.address)
            wait_for_totals(receiver, n_subscribers=1, n_connections=4)
            camera.send_images(range(N_GOOD))
            assert len(reader.receive(N_GOOD)) == N_GOOD
            health = Health([receiver])

            @examples(100)
            @given(messages(camera))
            def survived(parts: Sequence[bytes]) -> None:
                nonlocal n_sent
                camera.send(parts)
                n_sent += 1
                while (image := reader.receive_one(0)) is not None:
                    assert image.is_held
                health.check()

            survived()
            port = camera.port
        receiver.wait_for_line("disconnected from the camera server")
        with Camera(port=port) as camera:
            camera.send_images(range(N_GOOD))
            # Messages before these may have any id.
            received = []
            while [image.image_id for image in received[-N_GOOD:]] != list(range(N_GOOD)):
                image = reader.receive_one(60)
                assert image is not None, receiver.output
                received.append(image)
        for image in received[-N_GOOD:]:
            assert image.is_held
            np.testing.assert_array_equal(image.pixels, pixels_of(image.image_id, image.pixels.shape))
        health.check()
        # Each message is an image, late, repeated, or rejected for one reason.
        wait_for_totals(receiver, n_restarts=1)
        found = totals(receiver)
        assert sum(found[f"n_bad_{kind}"] for kind in REJECTIONS) > 0
        assert sum(found[f"n_bad_{kind}"] for kind in REJECTIONS) <= n_sent
