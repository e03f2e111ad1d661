"""Viewers of a live stream are slow, stopped or killed while its images are recorded."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from support.assertions.accounts import check_perfect
from support.processes.deployment import Service, wait_until
from support.processes.live_streams import (
    LiveStreamService,
    ids_got,
    start_live_stream,
    start_viewer,
    subscribed,
)
from support.processes.recording import Image, MakeRig, Rig, images_of
from support.tools.fault_table import Seen

# 2 MB: the socket buffers of a connection hold a few of these images, the viewer queue about thirty.
LARGE = {"image_pixel_height": 1024, "image_pixel_width": 1024, "gpfs_block_size": None, "ram_buffer_gb": 2}
N_IMAGES = 50


@pytest.fixture
def viewer(tmp_path: Path) -> Callable[..., Service]:
    """Return a function that starts a viewer process, which is slow while the file `slow` exists."""
    return lambda rig, stream: start_viewer(rig.deployment, stream, tmp_path / "slow")


def record_beside(rig: Rig, stream: LiveStreamService, images: list[Image]) -> str:
    """Record `images`, and check that the files and another viewer receive all of them."""
    with subscribed(stream) as good:
        rig.begin(n_image=len(images))
        for image in images:
            rig.publish([image])
            header, pixels = good.receive()
            assert f'"frame":{image.image_id}}}'.encode() in header
            assert pixels == image.pixels.tobytes()
        checked = check_perfect(rig.end(), images, due=images[0].image_id)
    return f"file_saved; {checked}; the other viewer received all of them"


@pytest.mark.fault(
    fault="viewer of a live stream: {what}",
    state="recording",
    promise="the run is perfect; other viewers receive every image; each image that it missed is counted",
)
@pytest.mark.parametrize("what", ["slow", "SIGSTOP, later SIGCONT"])
def test_only_a_viewer_that_does_not_keep_up_misses_images(
    make_rig: MakeRig, viewer: Callable[..., Service], tmp_path: Path, what: str, seen: Seen
):
    rig = make_rig(**LARGE)
    stream = start_live_stream(rig.deployment)
    rig.wait_for_subscription()
    assert rig.source.wait_for_subscribers(2, 60)
    bad = viewer(rig, stream)
    images = images_of(range(N_IMAGES), shape=rig.config.image_shape)
    if what == "slow":
        (tmp_path / "slow").touch()
    else:
        bad.send(signal.SIGSTOP)
    seen(record_beside(rig, stream, images))
    wait_until(lambda: stream.statistics().get("n_viewer_drops", 0) > 0, what="drops")
    assert stream.statistics()["n_overwritten_images"] == 0
    (tmp_path / "slow").unlink(missing_ok=True)
    bad.send(signal.SIGCONT)
    wait_until(
        lambda: len(ids_got(bad)) + stream.statistics()["n_viewer_drops"] == N_IMAGES,
        100,
        "received and dropped images that add up",
    )
    assert ids_got(bad) == sorted(set(ids_got(bad)))
    seen(f"it received {len(ids_got(bad))} images and missed {N_IMAGES - len(ids_got(bad))}")
    bad.kill()


@pytest.mark.fault(
    fault="viewer of a live stream: SIGKILL",
    state="recording",
    promise="the run is perfect; other viewers receive every image; the stream removes the viewer",
)
def test_a_killed_viewer_does_not_disturb_the_run_or_other_viewers(
    make_rig: MakeRig, viewer: Callable[..., Service], seen: Seen
):
    rig = make_rig(**LARGE)
    stream = start_live_stream(rig.deployment)
    assert rig.source.wait_for_subscribers(2, 60)
    killed = viewer(rig, stream)
    images = images_of(range(10), shape=rig.config.image_shape)
    rig.publish(images[:1])
    killed.wait_for_line("got 0")
    killed.kill()
    seen(record_beside(rig, stream, images[1:]))
    stream.process.wait_for_line(r"disconnected; 1 images sent, 0 dropped")


@pytest.mark.fault(
    fault="live stream: {how}",
    state="recording, with viewers",
    promise="the run is perfect; a restarted stream serves the same viewers",
)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_live_stream_that_fails_does_not_disturb_the_run(
    make_rig: MakeRig, how: signal.Signals, seen: Seen
):
    rig = make_rig(image_pixel_height=64, image_pixel_width=64)
    stream = start_live_stream(rig.deployment)
    assert rig.source.wait_for_subscribers(2, 60)
    images = images_of(range(N_IMAGES), shape=rig.config.image_shape)
    with subscribed(stream) as viewer:
        rig.begin(n_image=N_IMAGES)
        rig.publish(images[:50])
        assert viewer.receive_ids(50) == list(range(50))
        stream.process.send(how)
        rig.publish(images[50:])
        seen(f"file_saved; {check_perfect(rig.end(), images, due=0)}")
        stream.process.kill()
        wait_until(lambda: rig.source.count_subscribers() == 1, what="the end of the live stream")
        again = rig.deployment.start("std_live_stream", stream.address)
        assert rig.source.wait_for_subscribers(2, 60)
        # libzmq renews its subscription only when its user polls for messages.
        wait_until(lambda: viewer.is_quiet(0.01) and any(" subscribed" in line for line in again.stdout))
        rig.publish(images_of([1000, 1001], shape=rig.config.image_shape))
        assert viewer.receive_ids(2) == [1000, 1001]
    seen("the restarted stream serves the same viewer")
