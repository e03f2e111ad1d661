"""Every published image is recorded in the file of its writer, with its own pixels."""

from __future__ import annotations

import pytest
import zmq
from support.processes.recording import (
    DAMAGED,
    Image,
    MakeRig,
    Rig,
    assert_raw_files_hold,
    assert_saved,
    eiger_images,
    image_of,
    images_of,
    k11_images,
)

from stddaq.client import RunFailedError
from stddaq.dataplane.connections import open_socket
from stddaq.dataplane.endpoints import metadata_stream
from stddaq.dataplane.ipc_sockets import Binding


@pytest.mark.parametrize("n_writers", [1, 2, 3, 8])
def test_every_pixel_of_a_scan_of_3201_images_is_in_the_files(make_rig: MakeRig, n_writers: int):
    pixels = k11_images()
    rig = make_rig(number_of_writers=n_writers, image_pixel_height=22, image_pixel_width=26, ram_buffer_gb=1)
    images = [Image(i, pixels[i]) for i in range(len(pixels))]
    account = rig.record(images)
    assert_saved(account, images)
    assert account["n_good"] == 3201
    assert account["n_skipped"] == account["n_dropped"] == 0


def test_every_pixel_of_images_larger_than_the_block_is_in_the_files(make_rig: MakeRig):
    pixels = eiger_images()
    _, height, width = pixels.shape
    rig = make_rig(
        detector_type="eiger",
        bit_depth=32,
        image_pixel_height=height,
        image_pixel_width=width,
        gpfs_block_size=2**19,
    )
    images = [Image(i, pixels[i]) for i in range(len(pixels))]
    assert_saved(rig.record(images), images)


def test_division_by_arrival_uses_all_writers_whatever_the_ids(make_rig: MakeRig):
    rig = make_rig(image_division="arrival")
    images = images_of(range(0, 80, 4))
    account = rig.record(images)
    assert account["image_division"] == "arrival"
    assert_saved(account, images, by_arrival=True)


def test_ids_with_gaps_are_recorded_and_the_gaps_are_listed(make_rig: MakeRig):
    rig = make_rig(number_of_writers=3)
    images = images_of([5, 6, 9, 20, 21, 22, 40])
    account = rig.record(images)
    assert_saved(account, images)
    assert account["skipped"] == [[7, 8], [10, 19], [23, 39]]
    assert (account["first_id"], account["last_id"], account["n_skipped"]) == (5, 40, 29)
    # No image was dropped: the source did not publish these ids.
    assert account["n_dropped"] == 0


def test_a_filtered_stream_is_recorded_from_the_image_ring(make_rig: MakeRig):
    rig = make_rig(driver=["-s", "filter"])
    images = images_of(range(60))
    passed = [image for image in images if image.image_id % 5 in (0, 3)]
    endpoint = metadata_stream(rig.config.detector_name, "filter")
    with zmq.Context() as context:
        stage = open_socket(context, zmq.XPUB)
        binding = Binding(stage, endpoint)
        try:
            assert stage.poll(60_000), "the driver does not subscribe to the filtered stream"
            rig.client.start(rig.directory, n_image=len(passed))
            rig.client.wait_until_ready(60)
            for image in images:
                rig.source.publish(image.image_id, image.pixels)
                if image in passed:
                    stage.send(rig.source.metadata.SerializeToString())
            account = rig.end()
        finally:
            binding.close()
    assert_saved(account, passed)
    assert account["source"] == "filter"
    assert account["n_skipped"] == 60 - 24 - 1
    # An image that is missing in a filtered stream was not dropped.
    assert account["n_dropped"] is None


def test_ids_that_restart_within_a_run_keep_the_order_of_arrival(make_rig: MakeRig):
    rig = make_rig(number_of_writers=3)
    passes = [
        images_of(range(4, 11), salt=0),
        images_of(range(2, 8), salt=1),  # Some ids occur again, with other pixels.
        images_of([7, *range(20, 24)], salt=2),  # The same id again is also a restart.
    ]
    images: list[Image] = []
    rig.begin(n_image=18)
    for in_pass in passes:
        rig.wait_for_count(len(images))  # An image would be overwritten if its slot were reused at once.
        rig.publish(in_pass)
        images += in_pass
    account = rig.end()
    assert_saved(account, images)
    assert account["n_restarts"] == 2


@pytest.mark.parametrize("again", [0, 10, 12], ids=lambda again: f"12, then {again}")
def test_run_with_end_on_restart_ends_before_the_image_of_the_restart(rig: Rig, again: int):
    images = [*images_of(range(5, 8)), *images_of(range(10, 13))]
    rig.begin(n_image=20, end_on_restart=True)
    rig.publish(images)
    rig.wait_for_count(len(images))
    rig.publish(images_of([again, 13, 14], salt=1))
    with pytest.raises(RunFailedError, match=f"the image ids restarted: {again} came after 12, "):
        rig.client.wait_until_saved(60)
    account = rig.account()
    assert (account["outcome"], account["count"], account["n_good"]) == ("error", 6, 6)
    assert (account["skipped"], account["n_restarts"], account["last_id"]) == ([[8, 9]], 0, 12)
    assert_raw_files_hold(account["files"]["raw"], images)
    following = images_of(range(3, 9))
    assert_saved(rig.record(following, file_prefix="next", end_on_restart=True), following)


def test_images_below_start_id_are_not_recorded(rig: Rig):
    images = images_of(range(10, 30))
    rig.begin(n_image=8, start_id=17)
    rig.publish(images)
    account = rig.end()
    assert_saved(account, images_of(range(17, 25)))
    assert account["n_before_start_id"] == 7
    assert account["start_id"] == 17


@pytest.mark.parametrize("n_writers", [1, 3])
def test_number_of_images_is_exact(make_rig: MakeRig, n_writers: int):
    """This holds for 0, 1, N-1, N, N+1 images over N writers in consecutive runs of a continuous source."""
    rig = make_rig(number_of_writers=n_writers)
    next_id = 1
    for n_image in sorted({0, 1, n_writers - 1, n_writers, n_writers + 1}):
        rig.begin(n_image=n_image, file_prefix=f"n{n_image}_")
        images = images_of(range(next_id, next_id + n_image + 2))
        next_id += len(images)
        rig.publish(images)
        status = rig.client.wait_until_saved(60)
        account = rig.account()
        if status.status == "file_saved":
            assert status.count == n_image
        assert account["n_image"] == account["n_good"] == n_image
        assert_saved(account, images[:n_image])


def test_files_of_more_than_ten_writers_are_combined_in_order(make_rig: MakeRig):
    rig = make_rig(number_of_writers=12, image_pixel_height=8, image_pixel_width=8)
    images = images_of(range(100, 130), shape=(8, 8))
    assert_saved(rig.record(images), images)


@pytest.mark.parametrize(
    ("detector", "dtype"),
    [
        ({"detector_type": "eiger", "bit_depth": 8}, "<u1"),
        ({"detector_type": "jungfrau-converted", "bit_depth": 16}, "<f4"),
    ],
)
def test_pixels_of_every_type_are_stored_unchanged(make_rig: MakeRig, detector: dict, dtype: str):
    rig = make_rig(**detector)
    images = images_of(range(7), dtype=dtype)
    assert_saved(rig.record(images), images)


def test_damaged_images_are_recorded_counted_and_listed(rig: Rig):
    images = [image_of(i, status=DAMAGED if i in (3, 4, 11) else 1) for i in range(12)]
    account = rig.record(images)
    assert_saved(account, images)
    assert account["n_damaged"] == 3
    assert account["damaged_ids"] == [3, 4, 11]
    assert account["n_good"] == 9
