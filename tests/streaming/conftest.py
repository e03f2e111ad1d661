"""Fixtures of the live streams' tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.processes.deployment import Deployment

from stddaq.config import DetectorConfig
from stddaq.dataplane.image_publisher import ImagePublisher


@pytest.fixture
def publisher(deployment: Deployment) -> Iterator[ImagePublisher]:
    """Return a source of images in the ring of the deployment."""
    with ImagePublisher(DetectorConfig.parse(deployment.config)) as publisher:
        yield publisher
