"""Fixtures of drivers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.peers.basic_driver import BasicDriver


@pytest.fixture
def basic_driver() -> Iterator[BasicDriver]:
    """Return a driver that sends only status, count and reason."""
    with BasicDriver() as driver:
        yield driver
