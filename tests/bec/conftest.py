"""Fixtures of the BEC device over real daemons, without BEC's servers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.processes.bec_device import BecCamera
from support.processes.recording import MakeRig


@pytest.fixture
def make_camera(make_rig: MakeRig) -> Iterator[Callable[..., BecCamera]]:
    """Return a function that makes a BEC device over a new rig: `make_camera(image_timeout=1)`."""
    made: list[BecCamera] = []

    def make(rig: dict[str, Any] | None = None, **config: Any) -> BecCamera:
        daemons = make_rig(**(rig or {}))
        daemons.wait_for_subscription()
        made.append(BecCamera(daemons, **config))
        return made[-1]

    yield make
    for camera in made:
        camera.device.destroy()


@pytest.fixture
def camera(make_camera: Callable[..., BecCamera]) -> BecCamera:
    """Return a BEC device with a camera that takes images when it is triggered."""
    return make_camera()
