from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zmq
from support.processes.deployment import Deployment, wait_until
from support.processes.machine import assert_within
from support.processes.sources import refusal, start_source
from support.processes.stream_readers import ImageReader

from stddaq.client.simulator import (
    SimulatorClient,
    SimulatorNotReachableError,
    SimulatorRefusedError,
)
from stddaq.dataplane.endpoints import software_trigger
from stddaq.sources.simulated.scenes import SCENE_KINDS, Scene, SceneKind
from stddaq.sources.simulated.service import main

DETECTORS = {
    "gigafrost": {},
    "eiger": {"detector_type": "eiger", "bit_depth": 32},
    "pco-8": {"detector_type": "pco", "bit_depth": 8},
    "jungfrau-converted": {"detector_type": "jungfrau-converted", "bit_depth": 32},
    "one-pixel": {"image_pixel_height": 1, "image_pixel_width": 1},
}
END_TIMEOUT_S = 2.0


def triggered(client: SimulatorClient, n_images: int | None = None) -> tuple[int, int]:
    """Trigger a burst, and return its first id and number of images."""
    burst = client.trigger(n_images)
    return burst.first_id, burst.n_images


@pytest.mark.parametrize("kind", SCENE_KINDS)
@pytest.mark.parametrize("overrides", DETECTORS.values(), ids=DETECTORS)
def test_every_simulated_image_can_be_verified_by_another_process(
    make_deployment: Callable[..., Deployment], kind: SceneKind, overrides: dict[str, object]
) -> None:
    deployment = make_deployment(**overrides)
    with ImageReader(deployment) as reader:
        arguments = ("--scene", kind, "--seed", 4, "--rate", 0, "--n-images", 600)
        source = start_source(deployment, "simulate", *arguments, "--wait-for-subscribers", 1)
        received = reader.receive(600)
        scene = Scene.of(reader.config, kind, seed=4)
        assert source.wait() == 0
    assert [image.image_id for image in received] == list(range(600))
    for image in received:
        assert image.is_held
        np.testing.assert_array_equal(image.pixels, scene.image(image.image_id))


def test_ids_can_start_anywhere_and_have_gaps(deployment: Deployment) -> None:
    with ImageReader(deployment) as reader:
        arguments = ("--rate", 0, "--n-images", 6, "--first-id", 100, "--skip-every", 3)
        start_source(deployment, "simulate", *arguments, "--wait-for-subscribers", 1)
        assert [image.image_id for image in reader.receive(6)] == [100, 101, 103, 104, 106, 107]


def test_gigafrost_is_rearmed_after_its_last_id(deployment: Deployment) -> None:
    with ImageReader(deployment) as reader:
        arguments = ("--rate", 0, "--n-images", 4, "--first-id", 2**24 - 2)
        start_source(deployment, "simulate", *arguments, "--wait-for-subscribers", 1)
        received = reader.receive(4)
    assert [image.image_id for image in received] == [2**24 - 2, 2**24 - 1] * 2
    assert [image.metadata.gf.scan_id for image in received] == [0, 0, 1, 1]


@pytest.mark.slow
@pytest.mark.parametrize(("rate", "n_images"), [(50, 50), (3000, 4500)])
def test_images_have_the_requested_rate(deployment: Deployment, rate: int, n_images: int) -> None:
    with ImageReader(deployment) as reader:
        arguments = ("--rate", rate, "--n-images", n_images, "--wait-for-subscribers", 1)
        start_source(deployment, "simulate", *arguments)
        times = [image.metadata.gf.frame_timestamp for image in reader.receive(n_images)]
    took, expected = (times[-1] - times[0]) / 1e9, (n_images - 1) / rate
    assert expected - 0.01 < took
    assert_within(took, expected + 2)


@pytest.mark.slow
def test_idle_and_slow_sources_use_little_cpu(deployment: Deployment) -> None:
    source = start_source(deployment, "simulate", "--rate", 10)
    source.wait_for_line("processed_times")

    def processor_seconds() -> float:
        fields = Path(f"/proc/{source.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100

    before, begin = processor_seconds(), len(source.stdout)
    source.wait_for_line("processed_times", start=begin)
    assert processor_seconds() - before < 0.1


def test_one_trigger_is_one_burst(deployment: Deployment) -> None:
    start_source(deployment, "simulate", "--trigger", "--burst", 4, "--rate", 500)
    with ImageReader(deployment) as reader, SimulatorClient(deployment.detector_name) as client:
        wait_until(lambda: client.status().n_subscribers == 1, what="the subscription")
        assert reader.receive_one(0.2) is None
        assert triggered(client) == (0, 4)
        assert [image.image_id for image in reader.receive(4)] == [0, 1, 2, 3]
        assert triggered(client, 2) == (4, 2)
        assert triggered(client, 3) == (6, 3)
        assert [image.image_id for image in reader.receive(5)] == [4, 5, 6, 7, 8]
        assert reader.receive_one(0.2) is None
        state = client.status()
        assert (state.n_published, state.next_id, state.n_pending, state.n_left) == (9, 9, 0, None)


@pytest.mark.slow
def test_a_source_that_waits_for_its_trigger_is_not_behind(
    make_deployment: Callable[..., Deployment],
) -> None:
    deployment = make_deployment(stats_collection_period=1)
    source = start_source(deployment, "simulate", "--trigger", "--rate", 1000)
    # A free-running source would have dropped images of its schedule after a second.
    wait_until(lambda: sum("processed_times=0," in line for line in source.stdout) >= 4)
    with SimulatorClient(deployment.detector_name) as client:
        assert triggered(client, 3) == (0, 3)
    source.wait_for_line("processed_times=3,")
    assert not any("behind" in line for line in source.stdout)


def test_a_trigger_may_change_settings_and_shows_them(deployment: Deployment) -> None:
    start_source(deployment, "simulate", "--trigger", "--rate", 500)
    with SimulatorClient(deployment.detector_name) as client:
        state = client.trigger(1, exposure_time=0.5).state
        assert (state.rate, state.exposure_time, state.next_id) == (500, 0.5, 0)
        state = client.trigger(1, rate=100).state
        assert (state.rate, state.exposure_time) == (100, 0.5)
        with pytest.raises(SimulatorRefusedError, match="rate: "):
            client.trigger(1, rate=-1)
        assert (client.status().rate, client.status().next_id) == (100, 2)


def test_ids_restart_on_request(deployment: Deployment) -> None:
    start_source(deployment, "simulate", "--trigger", "--rate", 0)
    with ImageReader(deployment) as reader, SimulatorClient(deployment.detector_name) as client:
        wait_until(lambda: client.status().n_subscribers == 1, what="the subscription")
        client.trigger(3)
        # It refuses to re-arm while triggered images are pending.
        images = reader.receive(3)
        assert client.rearm().next_id == 0
        client.trigger(2)
        images += reader.receive(2)
        client.rearm(first_id=7)
        client.trigger(1)
        images += reader.receive(1)
    assert [image.image_id for image in images] == [0, 1, 2, 0, 1, 7]
    assert [image.metadata.gf.scan_id for image in images] == [0, 0, 0, 1, 1, 2]
    numbers = [image.metadata.sequence for image in images]
    assert numbers == list(range(numbers[0], numbers[0] + 6))


def test_settings_are_changed_on_request(deployment: Deployment) -> None:
    start_source(deployment, "simulate", "--trigger")
    with ImageReader(deployment) as reader, SimulatorClient(reader.config) as client:
        wait_until(lambda: client.status().n_subscribers == 1, what="the subscription")
        state = client.configure(rate=200, burst=3, exposure_time=0.5)
        assert (state.rate, state.burst, state.exposure_time) == (200, 3, 0.5)
        state = client.configure(burst=5)
        assert (state.rate, state.burst, state.exposure_time) == (200, 5, 0.5)
        client.trigger()
        assert {image.metadata.gf.exposure_time for image in reader.receive(5)} == {500_000_000}


def test_free_running_can_be_stopped_and_started(deployment: Deployment) -> None:
    start_source(deployment, "simulate", "--rate", 500)
    with SimulatorClient(deployment.detector_name) as client:
        with pytest.raises(SimulatorRefusedError, match="free-running"):
            client.trigger()
        stopped = client.stop()
        assert not stopped.free_running
        assert triggered(client, 1) == (stopped.next_id, 1)
        wait_until(lambda: client.status().n_published == stopped.n_published + 1, what="the image")
        assert client.start().free_running
        wait_until(lambda: client.status().n_published > stopped.n_published + 20, what="images")


def test_impossible_request_changes_nothing(deployment: Deployment) -> None:
    start_source(deployment, "simulate", "--trigger", "--rate", 0.1, "--n-images", 10)
    with SimulatorClient(deployment.detector_name) as client, zmq.Context() as context:
        client.trigger(2)
        with pytest.raises(
            SimulatorRefusedError, match="n_images: expected a value greater than or equal to 1, got 0"
        ):
            client.trigger(0)
        with pytest.raises(SimulatorRefusedError, match="rate: expected a finite number, got NaN"):
            client.configure(rate=float("nan"))
        with pytest.raises(SimulatorRefusedError, match="expected no pending images, got 1 triggered images"):
            client.rearm()
        before = client.status()
        with context.socket(zmq.REQ) as bad:
            bad.linger = 0
            bad.connect(software_trigger(deployment.detector_name))
            for message in (
                b"",
                b"{",
                b"[]",
                b'{"command": "fire"}',
                b'{"command": "rearm", "first_id": -1}',
            ):
                bad.send(message)
                assert bad.poll(60_000)
                answer = json.loads(bad.recv())
                assert answer["status"] == "error"
                assert answer["reason"]
        assert client.status() == before
        client.stop()
        with pytest.raises(SimulatorRefusedError, match="first_id: expected 0 to 16777215 for this detector"):
            client.rearm(2**24)
        assert client.status().next_id == 1
        assert triggered(client, 100) == (1, 9)
        with pytest.raises(SimulatorRefusedError, match="expected a source with images left"):
            client.trigger()


def test_client_without_an_answer_says_so_and_works_when_the_simulator_runs(deployment: Deployment) -> None:
    with SimulatorClient(deployment.detector_name, timeout=0.2) as client:
        with pytest.raises(SimulatorNotReachableError, match=r"an answer within 0\.2 s, got none"):
            client.status()
        start_source(deployment, "simulate", "--trigger")
        wait_until(lambda: reachable(client), what="the simulator")


def reachable(client: SimulatorClient) -> bool:
    try:
        return client.status().n_published == 0
    except SimulatorNotReachableError:
        return False


@pytest.mark.slow
def test_statistics_are_logged_once_a_period(deployment: Deployment) -> None:
    source = start_source(deployment, "simulate", "--rate", 100)
    pattern = (
        rf"\[info\] detector={deployment.detector_name},source=image,"
        r"processed_times=(\d+),repetition_rate_hz=\d+\.\d\d,n_subscribers=0 (\d+)$"
    )
    first = source.wait_for_line(pattern)
    second = source.wait_for_line(pattern, start=source.stdout.index(first.string) + 1)
    # Longer than a second, if the source stood still; then it catches up on one second.
    period_s = (int(second[2]) - int(first[2])) / 1e9
    assert period_s > 0.9
    assert 50 <= int(second[1]) <= 100 * period_s + 150


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    "arguments",
    [
        ("--rate", 0),
        ("--rate", 0.01),
        ("--trigger",),
        ("--wait-for-subscribers", 1, "--wait-timeout", 1000),
    ],
    ids=["full-speed", "slow", "waiting-for-trigger", "waiting-for-subscribers"],
)
def test_simulator_ends_at_once_and_leaves_nothing_behind(
    deployment: Deployment, arguments: tuple[object, ...], signal_number: int
) -> None:
    source = start_source(deployment, "simulate", *arguments)
    assert deployment.segments()
    begin = time.monotonic()
    assert source.end(signal_number) == 0
    assert_within(time.monotonic() - begin, END_TIMEOUT_S)
    assert source.stderr == []
    assert deployment.segments() == []
    assert deployment.sockets() == []


def test_simulator_ends_while_a_subscriber_hangs(deployment: Deployment) -> None:
    with ImageReader(deployment):  # The subscriber never reads.
        source = start_source(deployment, "simulate", "--rate", 0, "--wait-for-subscribers", 1)
        source.wait_for_line("processed_times=[1-9]")
        begin = time.monotonic()
        assert source.end() == 0
        assert_within(time.monotonic() - begin, END_TIMEOUT_S)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--rate", "-1"), "--rate: expected a number of Hz from 0"),
        (("--rate", "nan"), "--rate: expected a number of Hz from 0"),
        (("--burst", "0"), "--burst: expected an integer from 1"),
        (("--n-images", "1.5"), "--n-images: expected an integer from 1"),
        (("--first-id", str(2**24)), "--first-id: expected 0 to 16777215 for gigafrost, got 16777216"),
        (("--skip-every", "1"), "--skip-every: expected an integer from 2"),
        (("--scene", "cat"), "--scene: invalid choice: 'cat'"),
        (("--seed", "-4"), "--seed: expected an integer from 0"),
        (
            ("--wait-for-subscribers", "1", "--wait-timeout", "0.1"),
            "expected 1 subscribers within 0.1 s, got 0",
        ),
        (("extra",), "unrecognized arguments: extra"),
    ],
)
def test_bad_argument_is_refused_with_one_line(
    deployment: Deployment, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], reason: str
) -> None:
    line = refusal(capsys, main, deployment.config_path, *arguments)
    assert line.startswith("stddaq simulate: error: ")
    assert reason in line
    # The metrics page of a service that failed stays.
    shutil.rmtree(deployment.pages, ignore_errors=True)


def test_ring_has_all_its_memory_before_the_first_image(deployment: Deployment) -> None:
    start_source(deployment, "simulate", "--trigger")
    ring = Path("/dev/shm") / f"{deployment.detector_name}-image"
    assert ring.stat().st_blocks * 512 >= 1000 * 32 * 48 * 2


def test_second_simulator_of_a_detector_is_refused_and_the_first_continues(deployment: Deployment) -> None:
    start_source(deployment, "simulate", "--trigger")
    second = start_source(deployment, "simulate", ready=None)
    assert second.wait() == 2
    assert len(second.stderr) == 1
    assert "another running service is bound there" in second.stderr[0]
    with SimulatorClient(deployment.detector_name) as client:
        assert client.trigger(2).n_images == 2


def test_simulator_takes_over_sockets_and_segments_of_a_killed_one(deployment: Deployment) -> None:
    start_source(deployment, "simulate", "--trigger").kill()
    assert deployment.sockets()
    start_source(deployment, "simulate", "--trigger")
    with SimulatorClient(deployment.detector_name) as client:
        assert client.trigger().first_id == 0
