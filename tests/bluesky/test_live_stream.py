"""Live stream settings as a component of a device, with a real HTTP service."""

from __future__ import annotations

import json
from typing import Any

import pytest
from bluesky import RunEngine
from bluesky import plan_stubs as bps
from bluesky.utils import FailedStatus
from ophyd import Component
from ophyd_async.core import init_devices
from support.processes.deployment import Deployment

from stddaq.client import ConfigServiceUnreachableError
from stddaq_ophyd import AsyncLiveStreams, LiveStreams, LiveStreamSettingError, StdDaqDetector

ADDRESSES = {
    "tcp://127.0.0.1:20000": {"type": "forward", "config": []},
    "tcp://127.0.0.1:20001": {"type": "periodic", "config": [1, 5]},
}


@pytest.fixture
def url(deployment: Deployment) -> str:
    """Return the URL of the HTTP service of a configuration with two live streams."""
    deployment.write_config(live_stream_configs=ADDRESSES)
    service = deployment.start("stddaq-rest", "--port", 0, "--allow-control", ready=None)
    return service.wait_for_line(r"ready: listening on (http://\S+)")[1]


def on_disk(deployment: Deployment, port: int) -> Any:
    """Return the setting in the configuration file."""
    return json.loads(deployment.config_path.read_text())["live_stream_configs"][f"tcp://127.0.0.1:{port}"]


def test_settings_are_put_confirmed_and_refused_with_the_reason(
    engine: RunEngine, deployment: Deployment, url: str
):
    streams = LiveStreams(url, name="streams")
    assert streams.component_names == ("port_20000", "port_20001")
    first, second = streams.port_20000, streams.port_20001  # pyright: ignore[reportAttributeAccessIssue]
    assert (second.type.get(), second.config.get()) == ("periodic", [1, 5])
    first.set("batch 2 555").wait(60)
    assert on_disk(deployment, 20000) == {"type": "batch", "config": [2, 555]}
    engine(bps.mv(first.config, [3, 10], second, ("periodic", [1, 0.5])))
    assert on_disk(deployment, 20000) == {"type": "batch", "config": [3, 10]}
    assert on_disk(deployment, 20001) == {"type": "periodic", "config": [1, 0.5]}
    first.type.set("forward").wait(60)
    assert first.config.get() == []
    with pytest.raises(LiveStreamSettingError, match="for batch"):
        first.set("batch 7 5")
    with pytest.raises(ConfigServiceUnreachableError):
        LiveStreams("http://127.0.0.1:9", name="absent")


def test_settings_are_signals_of_ophyd_async(engine: RunEngine, deployment: Deployment, url: str):
    with init_devices():
        streams: Any = AsyncLiveStreams(url, addresses=list(ADDRESSES))
    read: list[Any] = []

    def plan() -> Any:
        read.append((yield from bps.rd(streams.port_20001)))
        yield from bps.mv(streams.port_20000, "batch 2 555")
        read.append((yield from bps.rd(streams.port_20000)))

    engine(plan())
    assert read == ["periodic 1 5", "batch 2 555"]
    assert on_disk(deployment, 20000) == {"type": "batch", "config": [2, 555]}
    with pytest.raises(FailedStatus, match="for batch"):
        engine(bps.mv(streams.port_20000, "batch 7 5"))


def test_a_setting_applies_while_the_device_is_staged(make_rig: Any, url: str, deployment: Deployment):
    class Detector(StdDaqDetector):
        live_stream = Component(LiveStreams, url, add_prefix=())

    rig = make_rig()
    det = Detector(rig.url, name="det", paths=rig.directory)
    address = det.live_stream.port_20000  # pyright: ignore[reportAttributeAccessIssue]
    det.stage_sigs[address] = "batch 1 100"
    det.stage().wait(60)
    assert on_disk(deployment, 20000) == {"type": "batch", "config": [1, 100]}
    det.unstage().wait(60)
    assert on_disk(deployment, 20000) == ADDRESSES["tcp://127.0.0.1:20000"]


def test_settings_of_another_session_are_shown_kept_and_restored(
    make_rig: Any, url: str, deployment: Deployment
):
    class Detector(StdDaqDetector):
        live_stream = Component(LiveStreams, url, add_prefix=())

    rig = make_rig()
    det = Detector(rig.url, name="det", paths=rig.directory)
    first, second = det.live_stream.port_20000, det.live_stream.port_20001  # pyright: ignore[reportAttributeAccessIssue]
    other = LiveStreams(url, name="other")
    other.port_20000.set("batch 2 555").wait(60)  # pyright: ignore[reportAttributeAccessIssue]
    other.port_20001.set("batch 3 100").wait(60)  # pyright: ignore[reportAttributeAccessIssue]
    det.stage_sigs[first] = "forward"
    det.stage().wait(60)
    configured: Any = det.read_configuration()
    assert configured["det_live_stream_port_20000_type"]["value"] == "forward"
    assert configured["det_live_stream_port_20001_config"]["value"] == [3, 100]
    det.unstage().wait(60)
    assert on_disk(deployment, 20000) == {"type": "batch", "config": [2, 555]}
    other.port_20001.set("batch 4 10").wait(60)  # pyright: ignore[reportAttributeAccessIssue]
    second.config.set([5, 10]).wait(60)
    assert on_disk(deployment, 20001) == {"type": "batch", "config": [5, 10]}
    second.type.set("forward").wait(60)
    with pytest.raises(LiveStreamSettingError, match="for forward"):
        second.config.set([5, 10]).wait(60)


def test_a_plan_takes_its_images_without_the_service_of_the_settings(make_rig: Any, deployment: Deployment):
    deployment.write_config(live_stream_configs=ADDRESSES)
    service = deployment.start("stddaq-rest", "--port", 0, "--allow-control", ready=None)
    url = service.wait_for_line(r"ready: listening on (http://\S+)")[1]

    class Detector(StdDaqDetector):
        live_stream = Component(LiveStreams, url, add_prefix=())

    rig = make_rig()
    det = Detector(rig.url, name="det", paths=rig.directory)
    service.end()
    det.stage().wait(20)
    configured: Any = det.read_configuration()
    assert configured["det_live_stream_port_20000_type"]["value"] == "unknown"
    det.unstage().wait(60)
