"""`std_gf_filter` forwards the metadata of images that are marked to be stored."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest
from support.processes.deployment import Deployment
from support.processes.recording import images_of
from support.processes.sources import refusal
from support.processes.stream_readers import StreamReader

from stddaq.config import DetectorConfig
from stddaq.dataplane.image_publisher import ImagePublisher
from stddaq.processing import gf_filter


def test_the_filter_forwards_messages_with_its_own_sequence_numbers(deployment: Deployment):
    with ImagePublisher(DetectorConfig.parse(deployment.config)) as source:
        service = deployment.start("std_gf_filter")
        assert source.wait_for_subscribers(1, 20)
        with StreamReader(deployment, "filter") as reader:
            sent = []
            for image in images_of(range(3000)):
                source.metadata.gf.store_image = image.image_id % 5 == 2
                source.publish(image.image_id, image.pixels)
                if image.image_id % 5 == 2:
                    sent.append(source.metadata.SerializeToString())
            received = reader.receive(600)
    assert [image.metadata.number for image in received] == list(range(1, 601))
    for image, message in zip(received, sent, strict=True):
        image.metadata.ClearField("number")
        assert image.metadata.SerializeToString() == message
    service.wait_for_line(r"source=image,processed_times=\d+,.*n_passed_images=")


def test_images_overwritten_before_filtering_are_forwarded_and_readers_notice(
    deployment: Deployment,
):
    with ImagePublisher(DetectorConfig.parse(deployment.config)) as source:
        service = deployment.start("std_gf_filter", "-n")
        assert source.wait_for_subscribers(1, 20)
        with StreamReader(deployment, "filter") as reader:
            service.send(signal.SIGSTOP)
            for image in images_of(range(1100)):
                source.publish(image.image_id, image.pixels)
            service.send(signal.SIGCONT)
            received = reader.receive(1100)
    assert [image.status for image in received] == [1] * 1100
    assert [image.is_held for image in received] == [False] * 100 + [True] * 1000


def test_other_detectors_are_refused(
    make_deployment: Callable[..., Deployment], capsys: pytest.CaptureFixture[str]
):
    deployment = make_deployment(detector_type="eiger")
    line = refusal(capsys, gf_filter.main, deployment.config_path)
    assert 'detector_type: expected "gigafrost" for std_gf_filter, got "eiger"' in line
