"""When a writer falls behind by more than the ring, no image is stored as good with wrong pixels."""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from support.peers.cpp_services import CppSource
from support.processes.recording import (
    OVERWRITTEN,
    Image,
    MakeRig,
    Rig,
    assert_master_file_holds,
    image_of,
    images_of,
    read_raw_file,
)
from support.processes.rings import RingProcess, other_process
from support.processes.storage import Storage
from support.tools.fault_table import Seen

from stddaq.client import RunFailedError
from stddaq.dataplane.endpoints import metadata_stream
from stddaq.dataplane.local_peers import path_of
from stddaq.dataplane.published_ids import UNCONFIRMED_HOLD_S
from stddaq.dataplane.ring_reader import ENDED_HOLD_S

SHAPE = (8, 16)
N_SLOTS = 1000
KEPT = "their rows have status 3 and no pixels; they are counted and listed; file_saved"


def publish_past_a_stopped_writer(rig: Rig, n_images: int, publish: Any) -> dict[str, Any]:
    """Stop writer 1 while `n_images` are published, then finish the run."""
    rig.writers[1].send(signal.SIGSTOP)
    publish(images_of(range(n_images), shape=SHAPE))
    rig.client.wait_for(lambda status: status.n_received == n_images, 60, "all images")
    rig.writers[1].send(signal.SIGCONT)
    rig.client.wait_until_saved(60)
    return rig.account()


def assert_only_overwritten_images_are_missing(
    account: dict[str, Any], images: int | Sequence[int]
) -> list[Image]:
    """Check that each image has a row, and that overwritten ones are named and blank. Return the images.

    `images`: their number, or their ids.
    """
    ids = range(images) if isinstance(images, int) else images
    expected = []
    overwritten = set(account["overwritten_ids"])
    paths = account["files"]["raw"]
    for writer, path in enumerate(paths):
        rows, data = read_raw_file(Path(path))
        assert rows["image_id"].tolist() == list(ids[writer :: len(paths)])
        for row, pixels in zip(rows, data, strict=True):
            image_id = int(row["image_id"])
            if row["status"] == 1:
                assert np.array_equal(pixels, image_of(image_id, SHAPE).pixels), f"image {image_id}"
                assert image_id not in overwritten
            else:
                assert row["status"] == OVERWRITTEN
                assert not pixels.any(), f"image {image_id} has pixels of another image"
                assert image_id in overwritten
    for image_id in ids:
        image = image_of(image_id, SHAPE)
        lost = image_id in overwritten
        expected.append(Image(image_id, np.zeros_like(image.pixels), OVERWRITTEN) if lost else image)
    assert account["n_overwritten"] == len(overwritten)
    assert account["n_good"] == len(ids) - len(overwritten)
    return expected


def small_images(make_rig: MakeRig, **changes: Any) -> Rig:
    return make_rig(tolerant=True, image_pixel_height=SHAPE[0], image_pixel_width=SHAPE[1], **changes)


@pytest.mark.fault(
    fault="writer lags by almost two rings",
    state="recording",
    promise="exactly the overwritten images are named: " + KEPT,
)
def test_exactly_the_overwritten_images_of_a_stddaq_source_are_named(make_rig: MakeRig, seen: Seen):
    rig = small_images(make_rig)
    rig.begin(n_image=1800)

    def publish(images: Sequence[Image]) -> None:
        # Writer 0 keeps up; writer 1 copies images that it received before its stop or after it.
        for first in range(0, len(images), 300):
            rig.publish(images[first : first + 300])
            rig.client.wait_for(
                lambda status, n=first + 300: status.n_written[0] >= n // 2, 60, "images of writer 0"
            )

    account = publish_past_a_stopped_writer(rig, 1800, publish)
    images = assert_only_overwritten_images_are_missing(account, 1800)
    # Ids 0 to 799 share their slots with 1000 to 1799; images copied before the stop are good.
    assert account["overwritten_ids"] == list(range(1, 800, 2))
    assert_master_file_holds(Path(account["files"]["master"]), images)
    assert account["outcome"] == "file_saved"
    seen(f"file_saved; {account['n_good']} of 1800 good, 400 overwritten, exactly those")


@pytest.mark.fault(
    fault="writer lags, {n_images} images of a source without cursor (C++-like), ring of 1000",
    state="recording",
    promise="at least the overwritten images are named: " + KEPT,
)
@pytest.mark.parametrize("n_images", [900, 1500])
def test_the_account_of_a_cpp_source_errs_on_the_safe_side(make_rig: MakeRig, n_images: int, seen: Seen):
    rig = small_images(make_rig)
    source = rig.enter(CppSource(rig.deployment.config))
    source.wait_for_subscriber()
    rig.client.start(rig.directory, n_image=n_images)
    rig.client.wait_until_ready(60)

    def publish(images: Sequence[Image]) -> None:
        for first in range(0, len(images), 300):
            for image in images[first : first + 300]:
                source.publish(image.image_id, image.pixels)
            rig.client.wait_for(
                lambda status, n=first + 300: status.n_written[0] >= n // 2, 60, "images of writer 0"
            )

    account = publish_past_a_stopped_writer(rig, n_images, publish)
    assert_only_overwritten_images_are_missing(account, n_images)
    truly = set(range(1, max(0, n_images - 1000), 2))
    named = set(account["overwritten_ids"])
    assert named >= truly
    # The margin adds images that the source may have been writing.
    assert all(image_id < n_images - 1000 + 60 for image_id in named)
    seen(f"file_saved; {len(truly)} were overwritten, {len(named)} are named")


@pytest.mark.fault(
    fault="writer stopped before 1900 images of a source without cursor (C++-like), then slow storage",
    state="recording",
    promise="at least the overwritten images are named: " + KEPT,
)
def test_a_writer_that_was_stopped_while_a_cpp_source_published_everything(
    make_rig: MakeRig, tmp_path: Path, seen: Seen
):
    n_images = 1900
    rig = small_images(make_rig, writers=False, number_of_writers=1)
    storage = Storage(tmp_path)
    rig.writers = [writer] = [storage.start(rig.deployment, "os:pwritev", "std_det_writer", 0)]
    source = rig.enter(CppSource(rig.deployment.config))
    source.wait_for_subscriber()
    rig.client.start(rig.directory, n_image=n_images)
    rig.client.wait_until_ready(60)
    storage.stop_responding()
    writer.send(signal.SIGSTOP)
    for image in images_of(range(n_images), shape=SHAPE):
        source.publish(image.image_id, image.pixels)
    rig.client.wait_for(lambda status: status.n_received == n_images, 60, "all images")
    writer.send(signal.SIGCONT)
    # Longer than a copy is held until its verdict: the next images are not known by then.
    storage.respond_slowly(12, 1.5 * UNCONFIRMED_HOLD_S)
    rig.client.wait_until_saved(60)
    account = rig.account()
    assert_only_overwritten_images_are_missing(account, n_images)
    named = set(account["overwritten_ids"])
    assert named >= set(range(n_images - N_SLOTS))
    assert account["n_good"] > 0
    seen(f"file_saved; {n_images - N_SLOTS} were overwritten, {len(named)} are named")


class LateRig:
    """A run whose writer lags, because its storage does not respond; the source is a process."""

    def __init__(self, make_rig: MakeRig, directory: Path) -> None:
        self.rig = small_images(make_rig, writers=False, number_of_writers=1)
        self.storage = Storage(directory)
        self.rig.writers = [self.storage.start(self.rig.deployment, "os:pwritev", "std_det_writer", 0)]

    def source(self, first: int, end: int) -> RingProcess:
        return other_process("publish", self.rig.config, first, end)

    def begin(self) -> None:
        self.rig.client.start(self.rig.directory)
        self.rig.client.wait_until_ready(60)
        self.storage.stop_responding()

    def wait_for(self, n_images: int) -> None:
        self.rig.client.wait_for(lambda status: status.n_received == n_images, 20, f"{n_images} images")

    def kill(self, source: RingProcess) -> None:
        source.kill()
        # The next source replaces it.
        path_of(metadata_stream(self.rig.config.detector_name, "image")).unlink()

    def publish_as_cpp_source(self, images: Sequence[Image]) -> None:
        with CppSource(self.rig.deployment.config) as source:
            source.wait_for_subscriber()
            for image in images:
                source.publish(image.image_id, image.pixels)
            self.wait_for(900)

    def end(self, slow_calls: int = 0) -> dict[str, Any]:
        """Let the storage respond, after some slow calls, and end the run."""
        self.storage.respond_slowly(1 + slow_calls, 1.5 * ENDED_HOLD_S if slow_calls else 0.0)
        return self.rig.end(stop=True)


@pytest.fixture
def late(make_rig: MakeRig, tmp_path: Path) -> LateRig:
    return LateRig(make_rig, tmp_path)


@pytest.mark.fault(
    fault="writer lags; the source {end}, and one without cursor (C++-like) writes 300 of its slots; "
    "{slow_calls} slow writes follow",
    state="recording",
    promise="at least the overwritten images are named: " + KEPT,
)
@pytest.mark.parametrize("end", ["ends", "is killed"])
@pytest.mark.parametrize("slow_calls", [0, 2])
def test_a_cpp_source_that_continues_on_the_ring_of_a_stddaq_source(
    late: LateRig, end: str, slow_calls: int, seen: Seen
):
    """Slow calls: the ids of the second source are not read yet when the first images are to be judged."""
    with late.source(0, 600) as source:
        late.begin()
        source.go()
        late.wait_for(600)
        if end == "is killed":
            late.kill(source)
    late.publish_as_cpp_source(images_of(range(1000, 1300), shape=SHAPE))
    account = late.end(slow_calls)
    assert_only_overwritten_images_are_missing(account, [*range(600), *range(1000, 1300)])
    named = set(account["overwritten_ids"])
    assert set(range(300)) <= named <= set(range(600))
    seen(f"{account['outcome']}; 300 were overwritten, {len(named)} are named")


@pytest.mark.fault(
    fault="writer lags; the source {end}",
    state="recording",
    promise="all images are good",
)
@pytest.mark.parametrize("end", ["is killed", "is killed and restarted"])
def test_images_of_a_source_that_has_ended_are_good(late: LateRig, end: str, seen: Seen):
    ids = list(range(600))
    with late.source(0, 600) as source:
        late.begin()
        source.go()
        late.wait_for(600)
        late.kill(source)
    if "restarted" in end:
        ids += range(700, 900)
        with late.source(700, 900) as source:
            source.go()
            late.wait_for(800)
    account = late.end()
    assert_only_overwritten_images_are_missing(account, ids)
    assert account["n_good"] == len(ids)
    seen(f"{account['outcome']}; {len(ids)} good")


@pytest.mark.fault(
    fault="writer lags by more than the ring; strict run",
    state="recording",
    promise="error with the counts; all files kept",
)
def test_a_strict_run_with_overwritten_images_is_an_error_with_all_files_kept(make_rig: MakeRig):
    rig = small_images(make_rig)
    rig.begin(n_image=1100, strict=True)
    rig.writers[1].send(signal.SIGSTOP)
    images = images_of(range(1100), shape=SHAPE)
    for first in range(0, 1100, 550):
        rig.publish(images[first : first + 550])
        rig.client.wait_for(lambda status, n=first + 550: status.n_written[0] >= n // 2, 60, "writer 0")
    rig.writers[1].send(signal.SIGCONT)
    with pytest.raises(RunFailedError, match="50 images were overwritten"):
        rig.client.wait_until_saved(60)
    account = rig.account()
    assert account["outcome"] == "error"
    assert_only_overwritten_images_are_missing(account, 1100)


@pytest.mark.fault(
    fault="writer lags by more than the ring, then SIGKILL",
    state="recording",
    promise="error; the overwritten images are listed, and none counts as good",
)
def test_overwritten_images_of_a_writer_that_is_then_killed_do_not_count_as_good(make_rig: MakeRig):
    rig = small_images(make_rig)
    rig.begin()
    rig.writers[1].send(signal.SIGSTOP)
    images = images_of(range(1200), shape=SHAPE)
    for first in range(0, 1200, 300):
        rig.publish(images[first : first + 300])
        rig.client.wait_for(lambda status, n=first + 300: status.n_written[0] >= n // 2, 60, "writer 0")
    rig.writers[1].send(signal.SIGCONT)
    rig.wait_for_count(1200)
    rig.writers[1].kill()
    with pytest.raises(RunFailedError, match="writer 1"):
        rig.client.wait_until_saved(60)
    account = rig.account()
    rows, _ = read_raw_file(rig.path("file1.h5"), swmr=True)
    assert account["overwritten_ids"] == rows["image_id"][rows["status"] == OVERWRITTEN].tolist()
    assert account["n_good"] == 1200 - 100


@pytest.mark.fault(
    fault="burst of six rings, as fast as the source can",
    state="recording",
    promise="overwritten images are named: " + KEPT,
)
def test_no_image_has_pixels_of_another_in_a_burst_of_many_rings(make_rig: MakeRig, seen: Seen):
    """Source and writers do not wait for each other, so that copies race with the source."""
    n_images = 6000
    rig = small_images(make_rig)
    rig.begin(n_image=n_images)
    rig.publish(images_of(range(n_images), shape=SHAPE))
    account = rig.end()
    # The account in the master file has all ids, however many.
    with h5py.File(account["files"]["master"]) as file:
        text: Any = file["entry/stddaq/account"]
        account |= json.loads(text[()])
    assert not account["lists_truncated"]
    images = assert_only_overwritten_images_are_missing(account, n_images)
    assert_master_file_holds(Path(account["files"]["master"]), images)
    seen(f"file_saved; {account['n_good']} of {n_images} good, {account['n_overwritten']} overwritten")
