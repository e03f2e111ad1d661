"""When the last work before an end fails, sockets, threads and descriptors are released all the same."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
from support.peers.cameras import PCO
from support.processes.deployment import WAIT_TIMEOUT_S, Deployment, free_port, wait_until
from support.processes.live_streams import FORWARD
from support.processes.real_driver import RealDriver
from support.processes.udp_modules import EIGER_MODULE

from stddaq.client import AsyncDriverClient, AsyncDriverGroup, async_driver
from stddaq.config import DetectorConfig
from stddaq.daemon.metrics import Registry
from stddaq.dataplane.image_publisher import ImagePublisher
from stddaq.sources.bsread.image_messages import CameraImage, RingFiller
from stddaq.sources.udp.faults import FaultRates
from stddaq.sources.udp.packet_sink import PacketSink
from stddaq.streaming.encoders import make_encoder
from stddaq.streaming.live_stream import LiveSource
from stddaq.streaming.run_follower import RunFollower
from stddaq.streaming.run_stream import RunStream
from stddaq.streaming.settings import FollowedSetting
from stddaq.streaming.viewer_queue import ImageBuffers
from stddaq.streaming.viewers import Viewers
from stddaq.wire.bsread import Channel, MainHeader
from stddaq.wire.zmtp import PUSH


class UnexpectedError(Exception):
    """Something that no service expects."""


def fail(*_: object) -> NoReturn:
    raise UnexpectedError


def descriptors() -> set[tuple[str, str]]:
    """Return the descriptors of this process, each with what it is of.

    They are compared one by one: garbage of other tests may be collected meanwhile.
    """
    found: set[tuple[str, str]] = set()
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # It has been closed meanwhile.
            found.add((path.name, str(path.readlink())))
    return found


def assert_released(opened: set[tuple[str, str]]) -> None:
    """Fail unless these descriptors are closed, or will be by a thread that ends."""
    assert opened
    wait_until(lambda: not opened & descriptors(), what="the end of descriptors")


def test_stream_of_runs_releases_its_source_if_the_end_of_a_series_cannot_be_sent(
    monkeypatch: pytest.MonkeyPatch, deployment: Deployment
) -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    deployment.write_config(live_stream_configs={address: FORWARD | {"socket": "push"}})
    config = DetectorConfig.parse(deployment.config)
    setting = FollowedSetting(deployment.config_path, address, config)
    pool = ImageBuffers(config.image_bytes)
    runs = RunFollower(f"ws://127.0.0.1:{free_port()}")
    viewers = Viewers(address, pool, PUSH, 1)
    encoder = make_encoder("stins", config, pool, "image")
    registry = Registry(config.detector_name, "test")
    before = descriptors()
    stream = RunStream(
        config, runs, LiveSource("image", "image"), encoder, viewers, setting, "stins", registry
    )
    opened = descriptors() - before
    viewers.n_subscribed = 1
    monkeypatch.setattr(viewers, "attend", fail)
    with pytest.raises(UnexpectedError):
        stream.close()
    assert_released(opened)
    viewers.close()
    runs.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_follower_of_runs_is_closed_after_its_thread_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    before = descriptors()
    monkeypatch.setattr(RunFollower, "_put", fail)
    runs = RunFollower(f"ws://127.0.0.1:{free_port()}")
    opened = descriptors() - before
    runs._thread.join(WAIT_TIMEOUT_S)
    assert runs.fileno() in [int(number) for number, _ in opened & descriptors()]
    runs.close()
    assert_released(opened)


def test_simulated_detector_releases_its_sockets_if_late_packets_cannot_be_sent(
    monkeypatch: pytest.MonkeyPatch, make_deployment: Callable[..., Deployment]
) -> None:
    config = DetectorConfig.parse(make_deployment(**EIGER_MODULE).config)
    before = descriptors()
    sink = PacketSink(config, "127.0.0.1", FaultRates(), 1, 1)
    opened = descriptors() - before
    monkeypatch.setattr(sink, "_send_later", fail)
    with pytest.raises(UnexpectedError):
        sink.close()
    assert_released(opened)


def test_decoding_threads_end_if_the_last_images_cannot_be_announced(
    make_deployment: Callable[..., Deployment],
) -> None:
    large: dict[str, Any] = {"image_pixel_height": 1024, "image_pixel_width": 1024}
    config = DetectorConfig.parse(make_deployment(**PCO | large).config)
    with ImagePublisher(config) as publisher:
        before, threads_before = descriptors(), set(threading.enumerate())
        filler = RingFiller(config, publisher, fail)
        opened = descriptors() - before
        header = MainHeader.model_validate(
            {
                "htype": "bsr_m-1.1",
                "pulse_id": 1,
                "global_timestamp": {"sec": 0, "ns": 0},
                "hash": "",
            }
        )
        channel = Channel(name="", shape=(1024, 1024), type="uint16", compression="bitshuffle_lz4")
        filler.put(CameraImage(header, channel, bytes(100)))
        with pytest.raises(UnexpectedError):
            filler.close()
        assert_released(opened)
        assert set(threading.enumerate()) <= threads_before


@pytest.mark.parametrize("is_group", [False, True])
def test_client_disconnects_although_its_reader_has_failed(
    monkeypatch: pytest.MonkeyPatch, real_driver: RealDriver, is_group: bool
) -> None:
    async def close_after_failure() -> None:
        has_failed = asyncio.Event()

        def fail_now(*_: object) -> NoReturn:
            has_failed.set()
            raise UnexpectedError

        before = descriptors()
        client = AsyncDriverGroup([real_driver.url]) if is_group else AsyncDriverClient(real_driver.url)
        await client.connect()
        opened = descriptors() - before
        monkeypatch.setattr(async_driver, "parse_status", fail_now)
        async with asyncio.timeout(WAIT_TIMEOUT_S):
            await has_failed.wait()
        with pytest.raises(UnexpectedError):
            await client.close()
        # The loop may close the socket of an aborted connection in a later turn.
        await asyncio.to_thread(assert_released, opened)

    asyncio.run(close_after_failure())
