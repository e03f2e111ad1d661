from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
import pytest
import tifffile
from support.processes.deployment import Deployment
from support.processes.recording import eiger_images, k11_images
from support.processes.sources import refusal, start_source
from support.processes.stream_readers import ImageReader, ReceivedImage

from stddaq.client.simulator import SimulatorClient
from stddaq.sources.replay import main

SHAPE = (32, 48)  # The shape of the images of a deployment.


@pytest.fixture
def images() -> np.ndarray:
    """Seven images of uint16."""
    return np.random.default_rng(2).integers(0, 2**16, (7, *SHAPE), np.uint16)


def replay(deployment: Deployment, file: object, n_images: int, *arguments: object) -> list[ReceivedImage]:
    """Return the first `n_images` images that a replay publishes, as another process sees them."""
    with ImageReader(deployment) as reader:
        # A rate among `arguments` comes later and takes precedence.
        arguments = ("--rate", 0, "--n-images", n_images, "--wait-for-subscribers", 1, *arguments)
        source = start_source(deployment, "replay", file, *arguments)
        received = reader.receive(n_images)
        assert source.wait() == 0
        assert reader.receive_one(0) is None
    assert all(image.is_held for image in received)
    return received


def write_hdf5(path: Path, images: np.ndarray) -> str:
    with h5py.File(path, "w") as file:
        file["angles"] = np.arange(7.0)
        file["title"] = "a title"
        file.create_dataset("scan/images", data=images, chunks=(2, 32, 48), **hdf5plugin.Bitshuffle())
    return str(path)


def write_hdf5_of_several(path: Path, images: np.ndarray) -> str:
    with h5py.File(path, "w") as file:
        file["a/dark"] = images + np.uint16(1)
        file["b/images"] = images
    return f"{path}:b/images"


def write_nexus(path: Path, images: np.ndarray) -> str:
    with h5py.File(path, "w") as file:
        file["aaa"] = np.zeros_like(images)
        file["entry/data/pixels"] = images
        file.attrs["default"] = "entry"
        file["entry"].attrs["default"] = "data"
        file["entry/data"].attrs["signal"] = "pixels"
    return str(path)


def write_npy(path: Path, images: np.ndarray) -> str:
    with path.open("wb") as file:
        np.save(file, images)
    return str(path)


def write_npy_of_other_memory_order(path: Path, images: np.ndarray) -> str:
    return write_npy(path, np.asfortranarray(images.astype(">u2")))


def write_tiff(path: Path, images: np.ndarray) -> str:
    tifffile.imwrite(path, images, photometric="minisblack")
    return str(path)


def write_compressed_big_tiff(path: Path, images: np.ndarray) -> str:
    tifffile.imwrite(path, images, photometric="minisblack", compression="zlib", bigtiff=True)
    return str(path)


def write_imagej_tiff(path: Path, images: np.ndarray) -> str:
    tifffile.imwrite(path, images, imagej=True)
    return str(path)


WRITERS = [
    write_hdf5,
    write_hdf5_of_several,
    write_nexus,
    write_npy,
    write_npy_of_other_memory_order,
    write_tiff,
    write_compressed_big_tiff,
    write_imagej_tiff,
]


@pytest.mark.parametrize("write", WRITERS)
def test_every_pixel_of_recorded_images_is_published(
    deployment: Deployment, tmp_path: Path, images: np.ndarray, write: Callable[[Path, np.ndarray], str]
) -> None:
    received = replay(deployment, write(tmp_path / "a file", images), 7)
    assert [image.image_id for image in received] == list(range(7))
    np.testing.assert_array_equal([image.pixels for image in received], images)


@pytest.mark.slow
def test_every_pixel_of_a_scan_of_small_images_is_published(
    make_deployment: Callable[..., Deployment], tmp_path: Path
) -> None:
    images = k11_images()
    deployment = make_deployment(image_pixel_height=22, image_pixel_width=26)
    file = write_npy(tmp_path / "k11.npy", images)
    # The reader may be up to 2.5 s late, as the ring has 1000 slots.
    received = replay(deployment, file, len(images), "--rate", 400)
    np.testing.assert_array_equal([image.pixels for image in received], images)


def test_images_in_a_compressed_file_are_published_to_the_last_pixel(
    make_deployment: Callable[..., Deployment], tmp_path: Path
) -> None:
    images = eiger_images()[:3]
    n, height, width = images.shape
    deployment = make_deployment(
        detector_type="eiger", bit_depth=32, image_pixel_height=height, image_pixel_width=width
    )
    path = tmp_path / "eiger.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("data", data=images, chunks=(1, height, width), **hdf5plugin.Bitshuffle())
    for image, recorded in zip(replay(deployment, path, n), images, strict=True):
        assert np.array_equal(image.pixels, recorded)


@pytest.mark.parametrize("write", [write_npy, write_tiff])
def test_two_dimensions_are_one_image(
    deployment: Deployment, tmp_path: Path, images: np.ndarray, write: Callable[[Path, np.ndarray], str]
) -> None:
    (received,) = replay(deployment, write(tmp_path / "one", images[3]), 1)
    np.testing.assert_array_equal(received.pixels, images[3])


def test_replay_ends_after_the_last_image(deployment: Deployment, tmp_path: Path, images: np.ndarray) -> None:
    source = start_source(deployment, "replay", write_npy(tmp_path / "x.npy", images), "--rate", 0)
    assert source.wait() == 0
    source.wait_for_line("all 7 images published")


def test_loop_restarts_with_new_ids(deployment: Deployment, tmp_path: Path, images: np.ndarray) -> None:
    file = write_hdf5(tmp_path / "x.h5", images)
    received = replay(deployment, file, 20, "--loop", "--first-id", 5)
    assert [image.image_id for image in received] == list(range(5, 25))
    for position, image in enumerate(received):
        np.testing.assert_array_equal(image.pixels, images[position % 7])


def test_ids_can_come_from_the_file(deployment: Deployment, tmp_path: Path, images: np.ndarray) -> None:
    path = tmp_path / "x.h5"
    write_hdf5(path, images)
    with h5py.File(path, "a") as file:
        file["ids"] = np.array([3, 4, 9, 10, 2, 5, 6])
    received = replay(deployment, path, 7, "--ids", f"{path}:ids")
    assert [image.image_id for image in received] == [3, 4, 9, 10, 2, 5, 6]
    np.testing.assert_array_equal([image.pixels for image in received], images)


def test_ids_of_the_file_restart_with_its_images(
    deployment: Deployment, tmp_path: Path, images: np.ndarray
) -> None:
    path = tmp_path / "x.h5"
    write_hdf5(path, images[:3])
    with h5py.File(path, "a") as file:
        file["ids"] = np.array([3, 4, 9])
    with ImageReader(deployment) as reader:
        arguments = ("--loop", "--ids", f"{path}:ids", "--n-images", 7, "--wait-for-subscribers", 1)
        start_source(deployment, "replay", path, "--rate", 0, *arguments)
        assert [image.image_id for image in reader.receive(7)] == [3, 4, 9, 3, 4, 9, 3]


def test_smaller_pixel_types_are_widened(deployment: Deployment, tmp_path: Path, images: np.ndarray) -> None:
    narrow = images.astype(np.uint8)
    received = replay(deployment, write_npy(tmp_path / "x.npy", narrow), 7)
    np.testing.assert_array_equal([image.pixels for image in received], narrow)


def test_cast_rounds_and_limits_pixels(deployment: Deployment, tmp_path: Path) -> None:
    pixels = np.zeros(SHAPE)
    pixels[0, :8] = [-3, 0.4, 0.6, 1e9, np.nan, np.inf, -np.inf, 65535]
    (received,) = replay(deployment, write_npy(tmp_path / "x.npy", pixels), 1, "--cast")
    assert received.pixels[0, :8].tolist() == [0, 0, 1, 65535, 0, 65535, 0, 65535]
    pixels = np.full(SHAPE, -1, np.int64)
    pixels[0, 0] = 2**40
    (received,) = replay(deployment, write_npy(tmp_path / "y.npy", pixels), 1, "--cast")
    assert received.pixels[0, :2].tolist() == [65535, 0]


def test_recorded_images_can_be_triggered(deployment: Deployment, tmp_path: Path, images: np.ndarray) -> None:
    file = write_npy(tmp_path / "x.npy", images)
    with ImageReader(deployment) as reader:
        start_source(deployment, "replay", file, "--trigger", "--rate", 0, "--wait-for-subscribers", 1)
        with SimulatorClient(deployment.detector_name) as client:
            assert client.trigger(2).n_images == 2
            received = reader.receive(2)
            assert client.status().n_left == 5
    np.testing.assert_array_equal([image.pixels for image in received], images[:2])


def write_text(path: Path, _images: np.ndarray) -> str:
    path.write_text("no images here")
    return str(path)


def write_empty(path: Path, _images: np.ndarray) -> str:
    path.touch()
    return str(path)


def write_nothing(path: Path, _images: np.ndarray) -> str:
    return str(path)


def make_directory(path: Path, _images: np.ndarray) -> str:
    path.mkdir()
    return str(path)


def name_no_dataset(path: Path, images: np.ndarray) -> str:
    return write_hdf5(path, images) + ":scan/nothing"


def name_group(path: Path, images: np.ndarray) -> str:
    return write_hdf5(path, images) + ":scan"


def name_text_dataset(path: Path, images: np.ndarray) -> str:
    return write_hdf5(path, images) + ":title"


def name_dataset_of_npy(path: Path, images: np.ndarray) -> str:
    return write_npy(path, images) + ":images"


def write_hdf5_without_images(path: Path, _images: np.ndarray) -> str:
    with h5py.File(path, "w") as file:
        file["angles"] = np.arange(7.0)
    return str(path)


def cut_hdf5(path: Path, images: np.ndarray) -> str:
    write_hdf5(path, images)
    os.truncate(path, path.stat().st_size // 2)
    return str(path)


def cut_npy(path: Path, images: np.ndarray) -> str:
    write_npy(path, images)
    os.truncate(path, path.stat().st_size // 2)
    return str(path)


def cut_tiff(path: Path, images: np.ndarray) -> str:
    write_tiff(path, images)
    os.truncate(path, 100)
    return str(path)


def damage_chunk(path: Path, images: np.ndarray) -> str:
    write_hdf5(path, images)
    with h5py.File(path, "a") as file:
        dataset = file["scan/images"]
        assert isinstance(dataset, h5py.Dataset)
        dataset.id.write_direct_chunk((0, 0, 0), b"not compressed by anybody")
    return str(path)


def write_objects(path: Path, _images: np.ndarray) -> str:
    with path.open("wb") as file:
        np.save(file, np.array([{"a": 1}], object), allow_pickle=True)
    return str(path)


def write_no_images(path: Path, _images: np.ndarray) -> str:
    return write_npy(path, np.zeros((0, *SHAPE), np.uint16))


def write_other_shape(path: Path, images: np.ndarray) -> str:
    return write_npy(path, images[:, :30])


def write_floats(path: Path, images: np.ndarray) -> str:
    return write_npy(path, images.astype(np.float32))


def write_colours(path: Path, _images: np.ndarray) -> str:
    tifffile.imwrite(path, np.zeros((2, *SHAPE, 3), np.uint8), photometric="rgb")
    return str(path)


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (write_nothing, "cannot be read: No such file or directory"),
        (make_directory, "cannot be read: Is a directory"),
        (write_text, "expected an HDF5, npy or TIFF file, got another format"),
        (write_empty, "expected an HDF5, npy or TIFF file, got another format"),
        (name_no_dataset, "expected the dataset scan/nothing, got /angles (7 of float64), /scan/images"),
        (name_group, "expected the dataset scan, got "),
        (
            name_text_dataset,
            "expected numbers in two (one image) or three dimensions, got one value of object",
        ),
        (name_dataset_of_npy, "expected an HDF5 file with the dataset images, got another format"),
        (write_hdf5_without_images, "expected a dataset of images, got /angles (7 of float64)"),
        (cut_hdf5, "cannot be read"),
        (cut_npy, "cannot be read"),
        (cut_tiff, "cannot be read"),
        (damage_chunk, "image 0 cannot be read"),
        (write_objects, "cannot be read"),
        (write_no_images, "expected numbers in two (one image) or three dimensions, got 0x32x48 of uint16"),
        (write_colours, "expected numbers in two (one image) or three dimensions, got 2x32x48x3 of uint8"),
        (write_other_shape, "expected images of 32x48 uint16, got 7 images of 30x48 uint16"),
        (
            write_floats,
            "expected images of 32x48 uint16, got 7 images of 32x48 float32; --cast",
        ),
    ],
)
def test_file_that_cannot_be_replayed_is_refused_with_one_line(
    deployment: Deployment,
    tmp_path: Path,
    images: np.ndarray,
    capsys: pytest.CaptureFixture[str],
    write: Callable[[Path, np.ndarray], str],
    reason: str,
) -> None:
    line = refusal(capsys, main, deployment.config_path, write(tmp_path / "a file", images))
    assert line.startswith(f"stddaq replay: error: {tmp_path / 'a file'}")
    assert reason in line


@pytest.mark.parametrize(
    ("ids", "reason"),
    [
        ("ids.h5", "expected FILE:dataset of an HDF5 file, got no dataset"),
        ("ids.h5:six", "expected 7 integers, got 6 of int64"),
        ("ids.h5:floats", "expected 7 integers, got 7 of float64"),
        ("ids.h5:negative", "expected image ids from 0 to 16777215, got -2"),
        ("ids.h5:large", "expected image ids from 0 to 16777215, got 16777216"),
        ("ids.h5:none", "expected 7 integers, got no dataset"),
        ("none.h5:ids", "No such file or directory"),
    ],
)
def test_bad_list_of_ids_is_refused_with_one_line(
    deployment: Deployment,
    tmp_path: Path,
    images: np.ndarray,
    capsys: pytest.CaptureFixture[str],
    ids: str,
    reason: str,
) -> None:
    with h5py.File(tmp_path / "ids.h5", "w") as file:
        file["six"] = np.arange(6)
        file["floats"] = np.arange(7.0)
        file["negative"] = np.arange(-2, 5)
        file["large"] = np.arange(7) + 2**24 - 6
    file = write_npy(tmp_path / "x.npy", images)
    assert reason in refusal(capsys, main, deployment.config_path, file, "--ids", tmp_path / ids)
