from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from support.processes.deployment import Deployment, wait_until
from support.processes.machine import assert_within
from support.processes.stream_readers import ImageReader

from stddaq.config import DetectorConfig
from stddaq.dataplane.image_publisher import ImagePublisher
from stddaq.dataplane.metadata import MISSING_PACKETS, ImageMetadata, MetadataRules
from stddaq.dataplane.ring_buffer import RingBuffer
from stddaq.errors import EndpointError, GeometryError, SourceError
from stddaq.sources.simulated.detector_fields import DetectorFields

DETECTORS = {
    "gigafrost": {},
    "eiger": {"detector_type": "eiger", "bit_depth": 32},
    "eiger-8": {"detector_type": "eiger", "bit_depth": 8},
    "pco": {"detector_type": "pco"},
    "jungfrau-raw": {"detector_type": "jungfrau-raw"},
    "jungfrau-converted": {"detector_type": "jungfrau-converted", "bit_depth": 32},
}


@pytest.fixture
def config(deployment: Deployment) -> DetectorConfig:
    return DetectorConfig.parse(deployment.config)


def random_images(config: DetectorConfig, n: int) -> list[np.ndarray]:
    random = np.random.default_rng(1)
    return [(random.random(config.image_shape) * 200).astype(config.dtype) for _ in range(n)]


@pytest.mark.parametrize("overrides", DETECTORS.values(), ids=DETECTORS)
def test_announced_images_are_those_in_the_ring(
    make_deployment: Callable[..., Deployment], overrides: dict[str, object]
) -> None:
    deployment = make_deployment(**overrides)
    config = DetectorConfig.parse(deployment.config)
    images = random_images(config, 20)
    with ImagePublisher(config) as publisher, ImageReader(deployment) as reader:
        assert publisher.wait_for_subscribers(1, timeout=60)
        sequences = [publisher.publish(7 + 3 * i, image) for i, image in enumerate(images)]
        received = reader.receive(len(images))
    assert [image.image_id for image in received] == [7 + 3 * i for i in range(20)]
    assert [image.metadata.sequence for image in received] == sequences
    rules = MetadataRules(config, "image")
    for image, published in zip(received, images, strict=True):
        assert image.is_held
        assert image.metadata.size == config.image_bytes
        assert rules.problem(image.metadata) is None
        np.testing.assert_array_equal(image.pixels, published)


def test_first_images_reach_a_late_subscriber(deployment: Deployment, config: DetectorConfig) -> None:
    def read() -> list[int]:
        with ImageReader(deployment) as reader:
            return [image.image_id for image in reader.receive(50)]

    with ImagePublisher(config) as publisher, ThreadPoolExecutor(3) as pool:
        readings = [pool.submit(read) for _ in range(3)]
        assert publisher.wait_for_subscribers(3, timeout=60)
        for image_id, image in enumerate(random_images(config, 50)):
            publisher.publish(image_id, image)
        assert all(reading.result(20) == list(range(50)) for reading in readings)


def test_the_wait_for_subscribers_ends_at_its_timeout(deployment: Deployment, config: DetectorConfig) -> None:
    with ImagePublisher(config) as publisher, ImageReader(deployment):
        begin = time.monotonic()
        assert not publisher.wait_for_subscribers(2, timeout=0.3)
        seconds = time.monotonic() - begin
        assert seconds > 0.25
        assert_within(seconds, 5.0)


def test_subscribers_that_leave_are_no_longer_counted(deployment: Deployment, config: DetectorConfig) -> None:
    with ImagePublisher(config) as publisher:
        with ImageReader(deployment), ImageReader(deployment):
            assert publisher.wait_for_subscribers(2, timeout=60)
        wait_until(lambda: publisher.count_subscribers() == 0, what="the end of both subscriptions")


def test_overwritten_slot_is_not_trusted(config: DetectorConfig) -> None:
    first, second = random_images(config, 2)
    with ImagePublisher(config) as publisher, RingBuffer(config, "image") as ring:
        old = publisher.publish(5, first)
        assert ring.holds(5, old)
        slot = publisher.begin(5 + config.n_slots)
        assert not ring.holds(5, old)
        slot[...] = second
        new = publisher.commit(5 + config.n_slots)
        assert not ring.holds(5, old)
        assert ring.holds(5 + config.n_slots, new)


def test_status_and_fields_apply_to_one_image_only(deployment: Deployment, config: DetectorConfig) -> None:
    (image,) = random_images(config, 1)
    with ImagePublisher(config) as publisher, ImageReader(deployment) as reader:
        assert publisher.wait_for_subscribers(1, timeout=60)
        publisher.metadata.gf.scan_id = 3
        publisher.publish(0, image, MISSING_PACKETS)
        publisher.metadata.gf.scan_id = 4
        publisher.publish(1, image)
        damaged, good = (received.metadata for received in reader.receive(2))
    assert (damaged.status, damaged.gf.scan_id) == (MISSING_PACKETS, 3)
    assert (good.status, good.gf.scan_id) == (1, 4)


def test_image_of_another_shape_or_type_is_refused_and_not_announced(
    deployment: Deployment, config: DetectorConfig
) -> None:
    height, width = config.image_shape
    with ImagePublisher(config) as publisher, ImageReader(deployment) as reader:
        assert publisher.wait_for_subscribers(1, timeout=60)
        for wrong in (np.zeros((width, height), config.dtype), np.zeros((height, width), np.float32)):
            with pytest.raises(SourceError, match=r"expected shape \(32, 48\) of uint16, got "):
                publisher.publish(0, wrong)
        publisher.publish(1, np.ones((height, width), config.dtype))
        assert [image.image_id for image in reader.receive(1)] == [1]
    assert publisher.n_published == 1


def test_second_publisher_of_a_detector_is_refused_and_the_first_continues(
    deployment: Deployment, config: DetectorConfig
) -> None:
    (image,) = random_images(config, 1)
    with ImagePublisher(config) as publisher, ImageReader(deployment) as reader:
        assert publisher.wait_for_subscribers(1, timeout=60)
        with pytest.raises(EndpointError, match="another running service"):
            ImagePublisher(config)
        publisher.publish(0, image)
        assert reader.receive(1)[0].is_held
        assert "image" in "".join(deployment.sockets())


def test_publisher_is_refused_a_ring_of_another_geometry_and_leaves_no_socket(
    deployment: Deployment, config: DetectorConfig
) -> None:
    larger = DetectorConfig.parse({**deployment.config, "image_pixel_height": 4000})
    with RingBuffer(config, "image"):
        with pytest.raises(GeometryError):
            ImagePublisher(larger)
        assert deployment.sockets() == []


def test_sequence_numbers_of_a_restarted_publisher_continue(
    deployment: Deployment, config: DetectorConfig
) -> None:
    (image,) = random_images(config, 1)
    with ImageReader(deployment):
        with ImagePublisher(config) as publisher:
            last = publisher.publish(0, image)
        with ImagePublisher(config) as publisher:
            assert publisher.publish(0, image) == last + 1


@pytest.mark.parametrize(
    ("overrides", "field"),
    [
        (DETECTORS["gigafrost"], "gf"),
        (DETECTORS["eiger"], "eg"),
        (DETECTORS["pco"], "pco"),
        (DETECTORS["jungfrau-raw"], "jf"),
        (DETECTORS["jungfrau-converted"], "jf"),
    ],
)
def test_every_detector_type_has_its_own_fields(
    make_deployment: Callable[..., Deployment], overrides: dict[str, object], field: str
) -> None:
    fields = DetectorFields(DetectorConfig.parse(make_deployment(**overrides).config), exposure_time=0.25)
    fields.begin_scan()
    message = ImageMetadata()
    fields.fill(message)
    assert message.WhichOneof("image_metadata") == field
    if field == "gf":
        assert (message.gf.scan_id, message.gf.exposure_time) == (1, 250_000_000)
        assert message.gf.store_image
        assert abs(message.gf.frame_timestamp - time.time_ns()) < 60e9
    if field == "eg":
        assert message.eg.exptime == 250_000_000
    if field == "pco":
        assert abs(message.pco.global_timestamp_sec - time.time()) < 60
        assert message.pco.bsread_name
    if field == "jf":
        assert message.jf.daq_rec == 1
