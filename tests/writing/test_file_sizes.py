"""Files of small runs are small: at most 5 % and 1 MiB larger than their pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.processes.recording import MakeRig, assert_saved, images_of

MIB = 2**20
SHAPE = (256, 256)  # A file of 128 KiB; 128 images fill a block.


def assert_small(account: dict[str, Any], image_bytes: int, n_images: int) -> None:
    n_writers = len(account["files"]["raw"])
    for writer, path in enumerate(account["files"]["raw"]):
        pixels = len(range(writer, n_images, n_writers)) * image_bytes
        # The size on disk, and the size on a file system without holes.
        for size in (Path(path).stat().st_size, Path(path).stat().st_blocks * 512):
            assert size <= 1.05 * pixels + MIB, f"{path}: {size} bytes for {pixels} bytes of pixels"
    assert Path(account["files"]["master"]).stat().st_size <= MIB


@pytest.mark.slow
@pytest.mark.parametrize("known", [True, False], ids=["n_image known", "stopped"])
def test_files_are_only_slightly_larger_than_their_pixels(make_rig: MakeRig, known: bool):
    """This holds for runs around the size of a block, with and without a number of images at the start."""
    rig = make_rig(gpfs_block_size=None, image_pixel_height=SHAPE[0], image_pixel_width=SHAPE[1])
    next_id = 0
    for n_images in (0, 1, 2, 7, 130, 261):
        images = images_of(range(next_id, next_id + n_images), shape=SHAPE)
        next_id += 1000  # An even number, so that every run starts with writer 0.
        prefix = f"n{n_images}_"
        if known:
            account = rig.record(images, file_prefix=prefix)
        else:
            rig.begin(file_prefix=prefix)
            rig.publish(images)
            rig.wait_for_count(n_images)
            account = rig.end(stop=True)
        assert_saved(account, images)
        assert_small(account, rig.config.image_bytes, n_images)


def test_files_of_a_run_that_is_stopped_early_are_small(make_rig: MakeRig):
    rig = make_rig(gpfs_block_size=None, image_pixel_height=SHAPE[0], image_pixel_width=SHAPE[1])
    rig.begin(n_image=10_000)
    images = images_of(range(5), shape=SHAPE)
    rig.publish(images)
    rig.wait_for_count(5)
    account = rig.end(stop=True)
    assert_saved(account, images)
    assert_small(account, rig.config.image_bytes, 5)


def test_files_of_small_images_in_large_blocks_are_small(make_rig: MakeRig):
    rig = make_rig(gpfs_block_size=None, image_pixel_height=8, image_pixel_width=8, number_of_writers=1)
    images = images_of(range(50), shape=(8, 8))
    rig.begin()
    rig.publish(images)
    rig.wait_for_count(50)
    account = rig.end(stop=True)
    assert_saved(account, images)
    assert_small(account, 128, 50)


def test_files_of_images_larger_than_the_block_are_as_large_as_their_pixels(make_rig: MakeRig):
    rig = make_rig(gpfs_block_size=100_000, image_pixel_height=SHAPE[0], image_pixel_width=SHAPE[1])
    images = images_of(range(11), shape=SHAPE)
    account = rig.record(images)
    assert_saved(account, images)
    assert_small(account, rig.config.image_bytes, 11)


def test_only_the_files_of_the_run_are_left_behind(make_rig: MakeRig):
    rig = make_rig(gpfs_block_size=None, image_pixel_height=SHAPE[0], image_pixel_width=SHAPE[1])
    rig.begin(n_image=10_000)
    rig.publish(images_of(range(3), shape=SHAPE))
    rig.wait_for_count(3)
    rig.end(stop=True)
    assert sorted(path.name for path in rig.directory.iterdir()) == ["file0.h5", "file1.h5", "fileMaster.h5"]
