"""Fixtures of the image buffer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.processes.deployment import Deployment
from support.processes.image_buffers import ImageBufferRig


@pytest.fixture
def make_buffer(
    make_deployment: Callable[..., Deployment], directory: Path
) -> Iterator[Callable[..., ImageBufferRig]]:
    """Return a function that makes image buffers of a configuration, without running services."""
    with ExitStack() as made:
        yield lambda **overrides: made.enter_context(ImageBufferRig(make_deployment, directory, **overrides))


@pytest.fixture
def buffer(make_buffer: Callable[..., ImageBufferRig]) -> ImageBufferRig:
    """Return an image buffer of images of 32 x 48 pixels of uint16, without running services."""
    return make_buffer()
