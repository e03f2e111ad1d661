"""Interoperation with std_daq services (C++), which notice no difference."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from support.peers import cpp_services
from support.peers.cpp_services import CppDriver, CppSource
from support.processes.deployment import Deployment, Service, wait_until
from support.processes.recording import (
    DAMAGED,
    Image,
    MakeRig,
    Rig,
    assert_raw_file_holds,
    assert_raw_files_hold,
    assert_saved,
    image_of,
    images_of,
)

from stddaq.client import RunFailedError
from stddaq.files.aggregate import aggregate_run


def start_cpp_writers(rig: Rig, which: Sequence[int]) -> list[Service]:
    return [
        rig.deployment.run(
            sys.executable, cpp_services.__file__, rig.deployment.config_path, i, ready="ready"
        )
        for i in which
    ]


@pytest.mark.parametrize("cpp_writers", [(0, 1, 2), (0,), (2,)], ids=["all", "first", "last"])
def test_the_driver_records_with_cpp_writers(make_rig: MakeRig, cpp_writers: tuple[int, ...]):
    rig = make_rig(writers=False, number_of_writers=3)
    start_cpp_writers(rig, cpp_writers)
    for i in {0, 1, 2} - set(cpp_writers):
        rig.deployment.start("std_det_writer", i)
    next_id = 0
    for run in range(2):
        images = images_of(range(next_id, next_id + 31))
        next_id += 31
        account = rig.record(images, file_prefix=f"run{run}_")
        assert_saved(account, images)
        assert account["n_good"] == 31


def test_a_run_with_cpp_writers_can_be_stopped(make_rig: MakeRig):
    rig = make_rig(writers=False)
    start_cpp_writers(rig, (0, 1))
    images = images_of(range(9))
    rig.begin()
    rig.publish(images)
    rig.client.wait_for(lambda status: status.n_received == 9, 60)
    assert_saved(rig.end(stop=True), images)


@pytest.mark.fault(
    fault="C++ writer: SIGKILL",
    state="recording",
    promise="error that names it; none of its images counts as recorded; the next run is perfect",
)
def test_a_killed_cpp_writer_is_named_and_none_of_its_images_counts_as_recorded(make_rig: MakeRig):
    rig = make_rig(writers=False)
    (killed,) = start_cpp_writers(rig, (0,))
    rig.deployment.start("std_det_writer", 1)
    images = images_of(range(20))
    rig.begin()
    rig.publish(images)
    rig.wait_for_count(10)
    killed.kill()
    with pytest.raises(RunFailedError, match="writer 0"):
        rig.client.wait_until_saved(60)
    account = rig.account()
    assert (account["count"], account["n_good"]) == (20, 10)
    assert account["failed_ids"] == list(range(0, 20, 2))
    assert_raw_file_holds(rig.path("file1.h5"), images[1::2])
    start_cpp_writers(rig, (0,))
    images = images_of(range(100, 110))
    assert_saved(rig.record(images, file_prefix="next"), images)


@pytest.mark.parametrize("division", ["image_id", "arrival"])
def test_cpp_source_is_recorded(make_rig: MakeRig, division: str):
    rig = make_rig(image_division=division)
    source = rig.enter(CppSource(rig.deployment.config))
    source.wait_for_subscriber()
    images = [image_of(i, status=DAMAGED if i == 9 else 1) for i in range(3, 60, 2)]
    rig.client.start(rig.directory, n_image=len(images))
    rig.client.wait_until_ready(60)
    for image in images:
        source.publish(image.image_id, image.pixels, image.status)
    account = rig.end()
    assert_saved(account, images, by_arrival=division == "arrival")
    assert account["n_dropped"] is None
    assert account["n_skipped"] == 28
    assert account["damaged_ids"] == [9]


@pytest.mark.fault(
    fault="C++ source announces images slightly out of order",
    state="recording",
    promise="all of them are good; no restart is counted",
)
def test_late_images_of_a_cpp_source_cost_no_image(make_rig: MakeRig):
    rig = make_rig()
    source = rig.enter(CppSource(rig.deployment.config))
    source.wait_for_subscriber()
    ids = [0, *(i for n in range(1, 97, 4) for i in (n + 1, n + 2, n + 3, n)), 97]
    images = images_of(ids)
    rig.client.start(rig.directory, n_image=len(images))
    rig.client.wait_until_ready(60)
    for image in images:
        source.publish(image.image_id, image.pixels)
    account = rig.end()
    assert_saved(account, images)
    assert account["n_good"] == len(images) == 98
    assert account["n_restarts"] == account["n_skipped"] == 0


@pytest.mark.fault(
    fault="ring buffer of a C++ source: removed by hand",
    state="between runs",
    promise="no image of the next run is good; after a restart of the source, the run is perfect",
)
def test_images_of_a_cpp_source_whose_ring_was_removed_are_not_good(make_rig: MakeRig):
    rig = make_rig()
    images = images_of(range(10))

    def record(source: CppSource, prefix: str) -> dict[str, Any]:
        rig.client.start(rig.directory, n_image=len(images), file_prefix=prefix)
        rig.client.wait_until_ready(60)
        for image in images:
            source.publish(image.image_id, image.pixels)
        return rig.end()

    with CppSource(rig.deployment.config) as source:
        source.wait_for_subscriber()
        assert record(source, "before")["n_good"] == 10
        Path(f"/dev/shm/{rig.deployment.detector_name}-image").unlink()
        account = record(source, "removed")
        assert (account["n_good"], account["n_overwritten"]) == (0, 10)
    with CppSource(rig.deployment.config) as source:
        source.wait_for_subscriber()
        assert_saved(record(source, "after"), images)


@pytest.mark.fault(
    fault="ring buffer of a C++ source: removed and created again",
    state="recording",
    promise="error that names it; images before it are good, none after it; the next run is perfect",
)
def test_a_cpp_ring_that_is_replaced_ends_the_run_before_old_pixels_are_recorded(
    make_rig: MakeRig,
):
    rig = make_rig()
    source = rig.enter(CppSource(rig.deployment.config))
    source.wait_for_subscriber()

    def publish(images: Sequence[Image]) -> None:
        for image in images:
            source.publish(image.image_id, image.pixels)

    images = images_of(range(1020))
    rig.client.start(rig.directory)
    rig.client.wait_until_ready(60)
    publish(images[:20])
    rig.wait_for_count(20)
    source.remake_ring()
    publish(images[1000:])  # These reuse the first slots.
    with pytest.raises(RunFailedError, match=f"/dev/shm/{rig.deployment.detector_name}-image: was removed"):
        rig.client.wait_until_saved(60)
    account = rig.account()
    assert account["n_good"] == 20
    assert set(account["failed_ids"]) <= set(range(1000, 1020))
    assert_raw_files_hold([rig.path("file0.h5"), rig.path("file1.h5")], images[:20])

    rig.client.start(rig.directory, n_image=10, file_prefix="next")
    rig.client.wait_until_ready(60)
    publish(images[:10])
    assert_saved(rig.end(), images[:10])


def test_a_ring_of_a_cpp_source_outlives_stddaq_services(make_deployment: Callable[..., Deployment]):
    deployment = make_deployment(number_of_writers=1)
    with CppSource(deployment.config):
        segment = Path("/dev/shm") / f"{deployment.detector_name}-image"
        inode = segment.stat().st_ino
        writer = deployment.start("std_det_writer", 0)
        assert writer.end() == 0
        assert segment.stat().st_ino == inode


def test_writers_obey_a_cpp_driver(make_deployment: Callable[..., Deployment], directory: Path):
    """Images arrive in turn, in messages without extensions, for two consecutive runs."""
    deployment = make_deployment(number_of_writers=3)
    with CppSource(deployment.config) as source, CppDriver(deployment.config, True) as driver:
        source.wait_for_subscriber()
        deployment.start_writers()
        deployment.start("std_det_meta_writer_gf")
        for prefix, ids in (("a", range(0, 60, 3)), ("b", range(100, 107)), ("c", range(0))):
            images = images_of(ids)
            driver.create(directory, prefix)
            for image in images:
                source.publish(image.image_id, image.pixels)
            driver.forward(len(images))
            driver.finish()
            files = [directory / f"{prefix}{i}.h5" for i in range(3)]
            assert_raw_files_hold(files, images, by_arrival=True)
            with h5py.File(directory / f"{prefix}Meta.h5") as file:
                rows = np.asarray(file[f"{deployment.detector_name}/metadata"])
            assert rows["image_id"].tolist() == list(ids)
            assert rows["frame_timestamp"].tolist() == [i * 1000 for i in ids]


def test_a_stddaq_writer_reports_to_a_cpp_driver_why_it_cannot_create_a_file(
    make_deployment: Callable[..., Deployment], directory: Path
):
    deployment = make_deployment(number_of_writers=1)
    (directory / "file0.h5").write_text("precious")
    with CppDriver(deployment.config) as driver:
        deployment.start_writers()
        with pytest.raises(AssertionError, match=r"file0\.h5: File exists"):
            driver.create(directory)
        assert (directory / "file0.h5").read_text() == "precious"
        driver.create(directory, "other")
        driver.finish()
        assert_raw_files_hold([directory / "other0.h5"], [])


def test_a_response_fits_into_the_buffer_of_a_cpp_driver(
    make_deployment: Callable[..., Deployment], directory: Path
):
    """C++ drivers have a buffer of 512 bytes, but parse as many bytes as the message had."""
    deployment = make_deployment(number_of_writers=1)
    with CppDriver(deployment.config) as driver:
        deployment.start_writers()
        with pytest.raises(AssertionError, match=r"ä(/file0\.h5)?: No such file or directory"):
            driver.create(directory.joinpath(*["ä" * 100] * 5))


@pytest.mark.fault(
    fault="C++ driver: exits",
    state="recording",
    promise="stddaq writers close valid files",
)
def test_files_of_stddaq_writers_are_valid_after_their_cpp_driver_exits(
    make_deployment: Callable[..., Deployment], directory: Path
):
    deployment = make_deployment(number_of_writers=1)
    images = images_of(range(12))
    with CppSource(deployment.config) as source:
        with CppDriver(deployment.config) as driver:
            source.wait_for_subscriber()
            (writer,) = deployment.start_writers()
            driver.create(directory)
            for image in images:
                source.publish(image.image_id, image.pixels)
            driver.forward(len(images))
        writer.wait_for_line("closed, 12 images")
    wait_until((directory / "file0.h5").exists)
    assert_raw_files_hold([directory / "file0.h5"], images)


def test_files_of_a_cpp_run_are_aggregated(make_deployment: Callable[..., Deployment], directory: Path):
    deployment = make_deployment(number_of_writers=2)
    images = images_of(range(5, 14))
    with CppSource(deployment.config) as source, CppDriver(deployment.config) as driver:
        source.wait_for_subscriber()
        for i in range(2):
            deployment.run(sys.executable, cpp_services.__file__, deployment.config_path, i, ready="ready")
        driver.create(directory)
        for image in images:
            source.publish(image.image_id, image.pixels)
        driver.forward(len(images))
        driver.finish()
    assert aggregate_run([directory]).n_images == 9
