"""Chains of real processes, from source to files: source, stage, driver and writers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import h5py
import numpy as np
import pytest
from support.data.raw_files import compressed_image
from support.processes.deployment import Deployment
from support.processes.recording import Image, MakeRig, Rig, assert_saved, images_of
from support.processes.sources import start_source
from support.processes.stream_readers import StreamReader

from stddaq.config import DetectorConfig
from stddaq.dataplane.image_publisher import ImagePublisher
from stddaq.sources.simulated.scenes import Scene

SERVICES = {
    "h5bitshuffle-lz4": "std_data_compress_h5bitshuffle_lz4",
    "blosc2": "std_data_compress_blosc2",
}
N_IMAGES = 30


def start_writers(rig: Rig, suffix: str) -> None:
    for i in range(rig.config.number_of_writers):
        rig.deployment.start("std_det_writer", i, "-s", suffix)


def begin(rig: Rig, **start: Any) -> None:
    rig.client.start(rig.directory, **start)
    rig.client.wait_until_ready(30)


# Every type of pixel with every codec is tested in `test_compressors.py`.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("suffix", "detector_type"), [("blosc2", "gigafrost"), ("blosc2", "eiger"), ("h5bitshuffle-lz4", "pco")]
)
def test_files_hold_the_exact_bytes_of_the_compressor(make_rig: MakeRig, suffix: str, detector_type: str):
    rig = make_rig(
        driver=["-s", suffix],
        writers=False,
        detector_type=detector_type,
        image_pixel_height=120,
        image_pixel_width=160,
    )
    start_writers(rig, suffix)
    rig.deployment.start(SERVICES[suffix], "-t", 2)
    with StreamReader(rig.deployment, suffix) as reader:
        begin(rig, n_image=N_IMAGES)
        arguments = ("--rate", 500, "--n-images", N_IMAGES, "--wait-for-subscribers", 1)
        start_source(rig.deployment, "simulate", *arguments)
        made = {image.image_id: image.content for image in reader.receive(N_IMAGES)}
        account = rig.end()
    scene = Scene.of(rig.config, "rings")
    assert_saved(account, [Image(i, scene.image(i)) for i in range(N_IMAGES)])
    assert (account["source"], account["n_dropped"]) == (suffix, 0)
    for writer, path in enumerate(account["files"]["raw"]):
        with h5py.File(path) as file:
            data: Any = file[f"{rig.config.detector_name}/data"]
            for row in range(data.shape[0]):
                mask, stored = data.id.read_direct_chunk((row, 0, 0))
                assert (mask, compressed_image(stored, suffix)) == (0, made[row * 2 + writer])


def test_incompressible_images_are_recorded_with_all_others(make_rig: MakeRig):
    rig = make_rig(driver=["-s", "blosc2"], writers=False)
    start_writers(rig, "blosc2")
    rig.deployment.start("std_data_compress_blosc2", "-t", 2)
    images = images_of(range(20))
    noise = np.random.default_rng(1).integers(0, 2**16, (32, 48), "u2").astype("<u2")
    images[5] = Image(5, noise)
    assert rig.source.wait_for_subscribers(1, 20)
    begin(rig, n_image=20)
    rig.publish(images)
    assert_saved(rig.end(), images)
    with h5py.File(rig.path("file1.h5")) as file:
        data: Any = file[f"{rig.config.detector_name}/data"]
        masks = [data.id.read_direct_chunk((row, 0, 0))[0] for row in range(10)]
    assert masks == [0, 0, 1, *[0] * 7]


def test_damage_and_loss_of_the_source_are_in_the_account_of_the_compressed_run(make_rig: MakeRig):
    rig = make_rig(driver=["-s", "h5bitshuffle-lz4"], writers=False)
    start_writers(rig, "h5bitshuffle-lz4")
    rig.deployment.start("std_data_compress_h5bitshuffle_lz4", "-t", 2)
    images = [image for image in images_of(range(30)) if image.image_id not in (11, 12)]
    images[4] = Image(4, images[4].pixels, status=2)
    assert rig.source.wait_for_subscribers(1, 20)
    begin(rig, n_image=28)
    rig.publish(images)
    account = rig.end()
    assert_saved(account, images)
    assert (account["damaged_ids"], account["skipped"], account["n_dropped"]) == ([4], [[11, 12]], 0)


@pytest.mark.parametrize("no_filter", [False, True])
def test_filtered_images_are_recorded_from_the_ring_of_the_source(make_rig: MakeRig, no_filter: bool):
    rig = make_rig(driver=["-s", "filter"], writers=False)
    start_writers(rig, "filter")
    rig.deployment.start("std_gf_filter", *(["--no_filter"] if no_filter else []))
    images = images_of(range(90))
    stored = [image for image in images if no_filter or image.image_id % 3 == 0]
    assert rig.source.wait_for_subscribers(1, 20)
    begin(rig, n_image=len(stored))
    for image in images:
        rig.source.metadata.gf.store_image = image.image_id % 3 == 0
        rig.publish([image])
    account = rig.end()
    assert_saved(account, stored)
    assert (account["source"], account["n_dropped"]) == ("filter", 0)
    assert account["n_skipped"] == (0 if no_filter else 58)


def test_compressor_follows_the_filter(make_deployment: Callable[..., Deployment]):
    deployment = make_deployment()
    with ExitStack() as stack:
        publisher = stack.enter_context(ImagePublisher(DetectorConfig.parse(deployment.config)))
        deployment.start("std_gf_filter")
        assert publisher.wait_for_subscribers(1, 20)
        deployment.start("std_data_compress_blosc2", "-t", 2, "-s", "filter")
        stack.enter_context(StreamReader(deployment, "filter"))  # It connects after the compressor.
        reader = stack.enter_context(StreamReader(deployment, "blosc2"))
        for image in images_of(range(30)):
            publisher.metadata.gf.store_image = image.image_id % 2 == 1
            publisher.publish(image.image_id, image.pixels)
        received = reader.receive(15)
    assert [image.image_id for image in received] == list(range(1, 30, 2))
    assert [image.metadata.number for image in received] == [0] * 15
