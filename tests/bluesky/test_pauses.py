"""A plan that pauses between the start of something and the wait for it goes on, whatever that still does."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from bluesky import Msg, RunEngine, RunEngineInterrupted
from bluesky import plan_stubs as bps
from bluesky import preprocessors as bpp
from bluesky.plans import count
from support.assertions.plans import Documents, PointCamera, assert_images, stream_images
from support.processes.deployment import wait_until

from stddaq_ophyd.plans import fly

Made = tuple[Any, PointCamera, str]


@pytest.fixture(params=["ophyd", "ophyd-async"])
def made(
    request: pytest.FixtureRequest, make_detector: Callable[..., Any], make_async_detector: Callable[..., Any]
) -> Made:
    """Return a detector of each kind, its camera, and the name of its images."""
    if request.param == "ophyd":
        return *make_detector(), "det_image"
    return *make_async_detector(), "det"


def paused_after(command: str, plan: Any, on_pause: Callable[[], None] = lambda: None) -> Any:
    """Run `plan`, and pause it once after a message `command`."""
    left = [command]

    def pause(message: Msg) -> tuple[None, Any]:
        if message.command not in left:
            return None, None
        left.clear()
        on_pause()
        return None, bps.pause()

    return bpp.plan_mutator(plan, pause)


def assert_next_plan_works(engine: RunEngine, made: Made) -> None:
    """Check that the next plan has its own images, and leaves the driver idle."""
    det, camera, key = made
    found = Documents()
    engine(count([det], 2), found)
    assert_images(stream_images(found, key), camera.published[-2:])
    wait_until(lambda: camera.rig.client.status().status == "idle", what="the driver to be idle")


@pytest.mark.parametrize("command", ["kickoff", "complete", "collect"])
def test_a_flight_that_is_paused_goes_on(
    engine: RunEngine, documents: Documents, made: Made, command: str
) -> None:
    det, camera, key = made
    with pytest.raises(RunEngineInterrupted):
        engine(paused_after(command, fly([det], 20, period=0.1)))
    n_before = len(camera.published)
    engine.resume()
    assert documents["stop"][0]["exit_status"] == "success"
    # The images are those of one kickoff.
    assert n_before in (0, 20)
    assert_images(stream_images(documents, key), camera.published[-20:])
    assert_next_plan_works(engine, made)


def test_a_flight_that_is_paused_while_its_camera_starts_goes_on(
    engine: RunEngine, documents: Documents, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    det, camera, key = made
    entered, go, fire = threading.Event(), threading.Event(), camera.fire

    def fire_late(n_images: int) -> None:
        entered.set()
        assert go.wait(60)
        fire(n_images)

    monkeypatch.setattr(camera, "fire", fire_late)
    plan = fly([det], 20, period=0.1)
    with pytest.raises(RunEngineInterrupted):
        engine(paused_after("kickoff", plan, threading.Timer(0.3, go.set).start))
    assert go.wait(60)
    if entered.is_set():
        camera.rig.wait_for_count(20, 60)
    engine.resume()
    assert documents["stop"][0]["exit_status"] == "success"
    assert_images(stream_images(documents, key), camera.published[-20:])
    assert_next_plan_works(engine, made)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "how"),
    [("kickoff", "abort"), ("kickoff", "halt"), ("complete", "abort"), ("trigger", "abort")],
)
def test_a_plan_that_ends_before_it_waits_leaves_the_driver_to_the_next(
    engine: RunEngine, made: Made, command: str, how: str
) -> None:
    det, camera, _ = made
    camera.n_held_back = 1
    plan = count([det]) if command == "trigger" else fly([det], 20, period=0.1)
    with pytest.raises(RunEngineInterrupted):
        engine(paused_after(command, plan))
    getattr(engine, how)()
    camera.n_held_back = 0
    assert_next_plan_works(engine, made)
