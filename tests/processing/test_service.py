"""A user's own service needs only a function."""

from __future__ import annotations

import json
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from support.peers.cpp_services import CppSource
from support.processes import user_services
from support.processes.deployment import Deployment, Service
from support.processes.machine import assert_within
from support.processes.recording import Image, MakeRig, assert_saved, image_of, images_of
from support.processes.sources import refusal
from support.processes.stream_readers import StreamReader

from stddaq.config import DetectorConfig
from stddaq.dataplane.image import Image as SourceImage
from stddaq.dataplane.image_publisher import ImagePublisher
from stddaq.dataplane.metadata import ImageMetadata
from stddaq.dataplane.ring_buffer import RingBuffer
from stddaq.errors import SourceError
from stddaq.processing import ServiceParser, run_processor

PROGRAM = Path(user_services.__file__)


def start(deployment: Deployment, role: str, *args: object) -> Service:
    return deployment.run(sys.executable, PROGRAM, role, deployment.config_path, *args, ready="ready")


@pytest.fixture
def config(deployment: Deployment) -> DetectorConfig:
    return DetectorConfig.parse(deployment.config)


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    """Return an exit stack that closes before the services end."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def source(deployment: Deployment, config: DetectorConfig) -> Iterator[ImagePublisher]:
    with ImagePublisher(config) as publisher:
        yield publisher


def publish(source: ImagePublisher, images: list[Image]) -> None:
    for image in images:
        source.publish(image.image_id, image.pixels, image.status)


def negated(image: Image) -> Image:
    return Image(image.image_id, np.invert(image.pixels), image.status)


@pytest.mark.parametrize("threads", [1, 4])
def test_new_images_are_published_in_the_order_of_the_source(
    deployment: Deployment, config: DetectorConfig, source: ImagePublisher, threads: int
):
    start(deployment, "negate", "-t", threads)
    assert source.wait_for_subscribers(1, 20)
    images = [image_of(i, status=1 + i % 2) for i in range(300)]
    with StreamReader(deployment, "negated") as reader:
        source.metadata.gf.scan_time = 5
        publish(source, images)
        received = reader.receive(300)
    for image, original in zip(received, images, strict=True):
        assert (image.image_id, image.status, image.is_held) == (original.image_id, original.status, True)
        assert image.metadata.gf.scan_time == 5
        np.testing.assert_array_equal(image.pixels, np.invert(original.pixels))


def test_writers_follow_a_new_stream_by_its_suffix(make_rig: MakeRig):
    rig = make_rig(driver=["-s", "negated"], writers=False)
    for i in range(2):
        rig.deployment.start("std_det_writer", i, "-s", "negated")
    start(rig.deployment, "negate", "-t", 2)
    assert rig.source.wait_for_subscribers(1, 20)
    rig.client.start(rig.directory, n_image=50)
    rig.client.wait_until_ready(30)
    images = images_of(range(50))
    rig.publish(images)
    account = rig.end()
    assert_saved(account, [negated(image) for image in images])
    assert (account["source"], account["n_dropped"]) == ("negated", 0)


def test_image_whose_processing_fails_is_forwarded_as_undefined_and_the_service_continues(
    deployment: Deployment, config: DetectorConfig, source: ImagePublisher
):
    service = start(deployment, "negate")
    assert source.wait_for_subscribers(1, 20)
    with StreamReader(deployment, "negated") as reader:
        for image in images_of(range(3)):
            source.metadata.gf.scan_id = 13 if image.image_id == 1 else 12
            publish(source, [image])
        received = reader.receive(3)
    assert [image.status for image in received] == [1, 0, 1]
    assert not received[1].pixels.any()
    service.wait_for_line(r"n_failed_images=1,")
    output = "\n".join(service.stdout)
    # At once: an error that waits for the end of the period keeps the image's slot, and so the ring.
    logged, _ = output.split("n_failed_images=1,")
    assert re.search(r"\[error\] processing failed: scan 13", logged)
    assert "user_services.py" in logged  # The traceback shows the place.


@pytest.mark.slow
def test_filter_can_select_images_by_their_pixels(make_rig: MakeRig):
    rig = make_rig(driver=["-s", "bright"], writers=False)
    for i in range(2):
        rig.deployment.start("std_det_writer", i)  # The images remain in the ring of the source.
    service = start(rig.deployment, "bright", "-t", 2)
    assert rig.source.wait_for_subscribers(1, 20)
    images = [Image(i, np.full((32, 48), i * 7 % 200, "<u2")) for i in range(120)]
    bright = [image for image in images if image.pixels[0, 0] >= 100]
    rig.client.start(rig.directory, n_image=len(bright))
    rig.client.wait_until_ready(30)
    rig.publish(images)
    account = rig.end()
    assert_saved(account, bright)
    assert (account["source"], account["n_dropped"]) == ("bright", 0)
    service.wait_for_count("n_passed_images", len(bright))


def test_filter_forwards_images_that_it_could_not_read_as_overwritten(
    deployment: Deployment, source: ImagePublisher
):
    service = start(deployment, "bright")
    assert source.wait_for_subscribers(1, 20)
    with StreamReader(deployment, "bright") as reader:
        service.send(signal.SIGSTOP)
        dark = np.zeros((32, 48), "<u2")
        publish(source, [Image(i, dark) for i in range(1005)])
        publish(source, [Image(1005, dark + np.uint16(100))])
        service.send(signal.SIGCONT)
        received = reader.receive(7)
    assert [(image.image_id, image.status) for image in received] == [
        *((i, 3) for i in range(6)),
        (1005, 1),
    ]


def test_images_of_another_size_have_their_own_configuration(
    deployment: Deployment, source: ImagePublisher, tmp_path: Path
):
    halved = {**deployment.config, "image_pixel_height": 16, "image_pixel_width": 24}
    path = tmp_path / "halved.json"
    path.write_text(json.dumps(halved))
    start(deployment, "halve", "--output-config", path)
    assert source.wait_for_subscribers(1, 20)
    config = DetectorConfig.parse(halved)
    with StreamReader(deployment, "halved", config) as reader:
        publish(source, images_of(range(4)))
        received = reader.receive(4)
    for image, original in zip(received, images_of(range(4)), strict=True):
        assert (image.metadata.height, image.metadata.width, image.metadata.size) == (16, 24, 768)
        np.testing.assert_array_equal(image.pixels, original.pixels[::2, ::2])


@pytest.mark.slow
def test_service_that_is_slower_than_its_source_still_gets_images(
    deployment: Deployment, source: ImagePublisher
):
    start(deployment, "negate", "--pause", 0.005)
    assert source.wait_for_subscribers(1, 20)
    image = image_of(0)
    with StreamReader(deployment, "negated") as reader:
        for image_id in range(4000):
            source.publish(image_id, image.pixels)
            if image_id % 4 == 0:
                time.sleep(0.002)
        received = reader.receive(4000, timeout=100)
    assert [image.image_id for image in received] == list(range(4000))
    statuses = [image.status for image in received]
    assert 3 in statuses, "the source was not fast enough"
    # Good images follow the first bad one, not only among the last 1000, which stayed in the ring.
    assert 1 in statuses[statuses.index(3) : 3000]


def test_source_without_cursor_is_served(deployment: Deployment, config: DetectorConfig):
    with CppSource(deployment.config) as source:
        start(deployment, "negate", "-t", 2)
        source.wait_for_subscriber()
        images = images_of(range(100))
        with StreamReader(deployment, "negated") as reader:
            for image in images:
                source.publish(image.image_id, image.pixels)
            received = reader.receive(100)
    for image, original in zip(received, images, strict=True):
        assert (image.status, image.is_held) == (1, True)
        np.testing.assert_array_equal(image.pixels, np.invert(original.pixels))


def test_hanging_function_does_not_keep_the_service_from_ending(
    deployment: Deployment, source: ImagePublisher
):
    service = start(deployment, "negate", "--pause", 600)
    assert source.wait_for_subscribers(1, 20)
    publish(source, images_of(range(3)))
    service.wait_for_line("pausing")
    began = time.monotonic()
    assert service.end() == 0
    assert_within(time.monotonic() - began, 5)
    service.wait_for_line("stopped while an image was still being processed")
    assert service.stderr == []
    # Its threads used the ring buffers until the end.
    assert deployment.sockets() == [f"{deployment.detector_name}-image"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["negate", "--pause", "-1"], "negate: error: --pause: found -1.0, allowed is 0 and more"),
        (["negate", "-t", "many"], "expected an integer from 1 to 1024, got 'many'"),
        (["negate", "-s", "negated"], '--source_suffix: expected any but that of the output, got "negated"'),
        (["negate", "-s", "../x"], "expected letters, digits"),
        (["halve", "--output-config", "/none.json"], "/none.json: cannot be read"),
    ],
)
def test_impossible_arguments_are_refused_with_the_reason(
    deployment: Deployment, capsys: pytest.CaptureFixture[str], arguments: list[str], reason: str
):
    role, *options = arguments
    main: Callable[[list[str]], int] = user_services.main
    assert reason in refusal(capsys, lambda argv: main([role, *argv]), *options, deployment.config_path)


def test_output_of_another_detector_is_refused(
    deployment: Deployment, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    path = tmp_path / "other.json"
    path.write_text(json.dumps({**deployment.config, "detector_name": "another"}))
    line = refusal(
        capsys,
        lambda argv: user_services.main(["halve", *argv]),
        "--output-config",
        path,
        deployment.config_path,
    )
    assert "detector_name: expected that of the source, " in line


@pytest.mark.parametrize("suffix", ["image", "filter", "blosc2"])
def test_streams_of_other_services_cannot_be_the_output(
    deployment: Deployment, capsys: pytest.CaptureFixture[str], suffix: str
):
    def main(argv: list[str]) -> int:
        parser = ServiceParser("misnamed", "A service.")
        return run_processor(parser, suffix, user_services.prepare_halve, argv)

    line = refusal(capsys, main, "-s", "delay", deployment.config_path)
    assert f'suffix of the output: expected any but those of std_daq\'s own streams, got "{suffix}"' in line


def test_compressed_images_have_bytes_and_no_pixels(config: DetectorConfig):
    with RingBuffer(config, "blosc2") as ring:
        ring.slot(3)[:4] = b"abcd"
        metadata = ImageMetadata(image_id=3, size=4, compression=2)  # pyright: ignore[reportArgumentType]
        image = SourceImage(metadata, ring)
        content = image.content
        assert bytes(content) == b"abcd"
        assert content.readonly
        with pytest.raises(SourceError, match="image 3: expected pixels, got a compressed image"):
            _ = image.pixels
        content.release()
        del image
