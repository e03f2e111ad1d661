"""Fixtures of the HTTP service as a real process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.peers import chromium
from support.processes.deployment import Deployment
from support.processes.web import RestService


@pytest.fixture(scope="module")
def browser() -> Iterator[None]:
    """Open the pages of all tests of a file in one Chromium."""
    with chromium.shared():
        yield


@pytest.fixture
def start_rest(deployment: Deployment, tmp_path: Path) -> Callable[..., RestService]:
    """Return a function that starts the service with options and waits until it is ready."""
    return lambda *args: RestService.start(deployment, tmp_path / "files", *args)


@pytest.fixture
def driver_url(deployment: Deployment) -> str:
    """Start a driver and its writers."""
    _, url = deployment.start_driver()
    deployment.start_writers()
    return url


@pytest.fixture
def rest(start_rest: Callable[..., RestService]) -> RestService:
    """Start the service with default options."""
    return start_rest()
